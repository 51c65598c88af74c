"""Contrasting within parts of a batch: rows of one block are no negatives of rows of another."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmalign.batch import Embeddings
from mmalign.losses.base import Loss


def restrict(embeddings: Embeddings, mask: Bool[Tensor, " batch"]) -> Embeddings:
    """The same rows, of which only those under `mask` count: elsewhere no modality is present and no token counts."""
    return replace(
        embeddings,
        present={name: present & mask for name, present in embeddings.present.items()},
        likelihoods={
            name: torch.where(mask[:, None], values, torch.zeros_like(values))
            for name, values in embeddings.likelihoods.items()
        },
    )


def blockwise(loss: Loss, embeddings: Embeddings, block: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """The loss with each block's rows among themselves, averaged over the anchors of all blocks.

    Args:
        block: a number per row (of all ranks' rows, after gathering), such as 0 for new rows and 1 for replayed ones.

    Returns: Σ_k n_k · loss(block k) / Σ_k n_k, with n_k anchors in block k. One block gives the plain loss.
    """
    total = loss.anchor_count(embeddings).clamp(min=1)
    parts = [restrict(embeddings, block == number) for number in torch.unique(block).tolist()]
    if not parts:
        return loss(embeddings)
    return torch.stack([loss(part) * (loss.anchor_count(part) / total) for part in parts]).sum()
