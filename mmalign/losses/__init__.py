"""Losses: one file per loss, each `loss(embeddings) -> scalar`; see `mmalign.losses.base` for the contract."""

from mmalign.losses.base import Loss
from mmalign.losses.blocks import blockwise, restrict
from mmalign.losses.infonce import InfoNCE
from mmalign.losses.logit_scale import LogitScale
from mmalign.losses.next_token import NextToken
from mmalign.losses.siglip import SigLIP

__all__ = ["InfoNCE", "LogitScale", "Loss", "NextToken", "SigLIP", "blockwise", "restrict"]
