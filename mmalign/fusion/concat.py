"""Fusion by concatenation and a perceptron."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmalign.checks import at_least
from mmalign.fusion.base import Fusion, presence


class ConcatMLP(Fusion):
    """All modalities side by side, then a two-layer perceptron, added to the mean of the present vectors.

    A missing modality is replaced by a placeholder learned for it, and one bit per modality says which are present.

    Args:
        hidden: channels of the perceptron's inner layer.
        dropout: before its last layer.
    """

    def __init__(self, hidden: int = 512, dropout: float = 0.0) -> None:
        super().__init__()
        at_least(1, hidden=hidden)
        self.hidden, self.dropout = hidden, dropout

    def build(self, modalities: list[str], dim: int) -> None:
        self.modalities = modalities
        self.placeholders = nn.Parameter(torch.randn(len(modalities), dim) * dim**-0.5)
        self.mlp = nn.Sequential(
            nn.Linear(len(modalities) * (dim + 1), self.hidden),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, dim),
        )

    def forward(
        self, vectors: dict[str, Float[Tensor, "batch dim"]], present: dict[str, Bool[Tensor, " batch"]]
    ) -> Float[Tensor, "batch dim"]:
        stacked, mask = presence(self.modalities, vectors, present)
        filled = torch.where(mask.unsqueeze(-1), stacked, self.placeholders.to(stacked.dtype))
        bits = mask.to(stacked.dtype)
        mean = (stacked * bits.unsqueeze(-1)).sum(1) / bits.sum(1, keepdim=True).clamp(min=1)
        return mean + self.mlp(torch.cat([filled.flatten(1), bits], 1))
