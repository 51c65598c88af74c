"""The pre-norm transformer that mmalign's own small towers and its fusion share."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mmalign.checks import at_least, positive


def attendable(mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """The mask, but with the first position of rows that have none: attention over nothing is NaN."""
    first = torch.zeros_like(mask)
    first[:, 0] = True
    return mask | (first & ~mask.any(1, keepdim=True))


def rotation(length: int, channels: int, device: torch.device) -> Float[Tensor, "2 length half"]:
    """Cosine and sine of rotary position embeddings (Su et al. 2021, arXiv:2104.09864); right for any length."""
    frequencies = 10000.0 ** (-torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(
    x: Float[Tensor, "batch heads length channels"], turn: Float[Tensor, "2 length half"]
) -> Float[Tensor, "batch heads length channels"]:
    """Turn each channel pair (i, i + half) by its position's angle."""
    cos, sin = turn.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def check_sizes(width: int, depth: int, heads: int, mlp_ratio: float) -> None:
    """Raise a ValueError that names the size of a transformer that makes no sense."""
    at_least(1, width=width, depth=depth, heads=heads)
    positive(mlp_ratio=mlp_ratio)


class Block(nn.Module):
    """Pre-norm self-attention and MLP, each added to its input."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} does not split into {heads} heads of an even number of channels")
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = round(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        keys: Bool[Tensor, "batch 1 1 length"] | None,
        turn: Float[Tensor, "2 length half"] | None,
        causal: bool,
    ) -> Float[Tensor, "batch length width"]:
        """`keys` are the positions that may be attended to; `turn` the rotary angles; both None for no such thing."""
        split = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, keys, dropout_p=dropout, is_causal=causal)
        x = x + functional.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + self.mlp(self.norm_mlp(x))


class Transformer(nn.Module):
    """Blocks and a final norm.

    With `causal`, a position sees itself and what comes before, and there may be no mask: rows must be padded at their
    end, where no real position sees the padding. Without, `mask` hides padding anywhere.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        causal: bool = False,
        rotary: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(width, depth, heads, mlp_ratio)
        self.causal, self.rotary = causal, rotary
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head_channels = width // heads

    def forward(
        self, x: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        if self.causal and mask is not None:
            raise ValueError("a causal transformer takes rows that are padded at their end, and no mask")
        keys = None if mask is None else attendable(mask)[:, None, None, :]
        turn = rotation(x.shape[1], self.head_channels, x.device) if self.rotary else None
        for block in self.blocks:
            x = block(x, keys, turn, self.causal)
        return self.norm(x)
