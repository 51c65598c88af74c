"""A small byte-level causal language model: a text tower with language ability that needs no download."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.checks import at_least
from mmalign.encoders.base import Axis
from mmalign.encoders.text_causal import CausalLanguageModel, CausalTextPreprocess, pool_last
from mmalign.encoders.transformer import Transformer, check_sizes

START, END, VOCABULARY = 256, 257, 258


@dataclass(frozen=True)
class BytePreprocess(CausalTextPreprocess):
    """UTF-8 bytes between a start and an end token; a text too long loses its end, never its end token."""

    def __post_init__(self) -> None:
        at_least(3, max_length=self.max_length)  # a byte between the special tokens

    def encode(self, text: str) -> list[int]:
        return [START, *text.encode("utf-8")[: self.max_length - 2], END]

    def encode_whole(self, text: str) -> list[int]:
        return [START, *text.encode("utf-8")]


def to_front(
    values: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"], Int[Tensor, "batch length"] | None]:
    """Move padding behind the real tokens, so that rows are the same however they were padded.

    Returns:
        (values, mask, where each position went; None if nothing had to move)
    """
    if not (mask[:, 1:] & ~mask[:, :-1]).any():
        return values, mask, None
    order = (~mask).int().argsort(dim=1, stable=True)
    return values.gather(1, order), mask.gather(1, order), order.argsort(1)


class TextBytes(CausalLanguageModel):
    """Pre-norm transformer over bytes, rotary positions, output weights tied to the embedding.

    `pooled` is the vector at the end token, which has seen the whole text.

    Args:
        width, depth, heads: of the transformer.
        max_length: bytes and the two special tokens.
        mlp_ratio: width of the perceptrons over that of the transformer.
        dropout: in attention and perceptrons.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 3,
        heads: int = 3,
        max_length: int = 256,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        check_sizes(width, depth, heads, mlp_ratio)
        super().__init__(preprocess=BytePreprocess(max_length), width=width, axis=Axis("tokens"))
        self.end_id = END
        self.embedding = nn.Embedding(VOCABULARY, width)
        nn.init.normal_(self.embedding.weight, std=0.02)  # it is the output layer, too: small first logits
        self.transformer = Transformer(width, depth, heads, mlp_ratio, dropout, causal=True)

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        if mask is None:
            mask = torch.ones_like(values, dtype=torch.bool)
        ids, _, back = to_front(values, mask)
        sequence = self.transformer(self.embedding(ids))
        if back is not None:
            sequence = sequence.gather(1, back.unsqueeze(-1).expand_as(sequence))
        return Tokens(sequence, mask, pool_last(sequence, mask))

    def logits(self, sequence: Float[Tensor, "*positions width"]) -> Float[Tensor, "*positions vocabulary"]:
        return nn.functional.linear(sequence, self.embedding.weight)

    def layers(self) -> list[nn.Module]:
        *blocks, last = self.transformer.blocks
        return [self.embedding, *blocks, nn.ModuleList([last, self.transformer.norm])]
