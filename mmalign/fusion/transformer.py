"""Fusion by a transformer over one token per modality."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmalign.checks import at_least
from mmalign.encoders.transformer import Transformer
from mmalign.fusion.base import Fusion, presence


class TransformerFusion(Fusion):
    """A learned query token and one token per modality, each with a learned embedding of its modality; attention sees
    the present ones only. The result is what the query has become.

    Args:
        depth, heads: of the transformer; its width is the shared `dim`.
        mlp_ratio: width of the perceptrons over that of the transformer.
        dropout: in attention and perceptrons.
    """

    def __init__(self, depth: int = 2, heads: int = 4, mlp_ratio: float = 2.0, dropout: float = 0.0) -> None:
        super().__init__()
        at_least(1, depth=depth, heads=heads)
        self.depth, self.heads, self.mlp_ratio, self.dropout = depth, heads, mlp_ratio, dropout

    def build(self, modalities: list[str], dim: int) -> None:
        self.modalities = modalities
        self.query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.kinds = nn.Parameter(torch.randn(len(modalities), dim) * dim**-0.5)
        self.transformer = Transformer(dim, self.depth, self.heads, self.mlp_ratio, self.dropout, rotary=False)

    def forward(
        self, vectors: dict[str, Float[Tensor, "batch dim"]], present: dict[str, Bool[Tensor, " batch"]]
    ) -> Float[Tensor, "batch dim"]:
        stacked, mask = presence(self.modalities, vectors, present)
        query = self.query.to(stacked.dtype).expand(len(stacked), 1, -1)
        tokens = torch.cat([query, stacked + self.kinds.to(stacked.dtype)], 1)
        seen = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        return self.transformer(tokens, seen)[:, 0]
