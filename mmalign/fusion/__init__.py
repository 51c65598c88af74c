"""Fusions: any non-empty subset of modalities in, one joint embedding out."""

from mmalign.fusion.base import Fusion
from mmalign.fusion.concat import ConcatMLP
from mmalign.fusion.transformer import TransformerFusion

__all__ = ["ConcatMLP", "Fusion", "TransformerFusion"]
