"""A byte-level causal language model whose transformer runs over patches of bytes: several times cheaper per text."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mmalign.batch import Tokens
from mmalign.checks import at_least
from mmalign.encoders.base import Axis
from mmalign.encoders.text_bytes import END, VOCABULARY, BytePreprocess, to_front
from mmalign.encoders.text_causal import CausalLanguageModel, pool_last
from mmalign.encoders.transformer import Transformer, check_sizes

NOTHING = VOCABULARY  # before the first byte and behind the last one


class TextBytePatches(CausalLanguageModel):
    """A global causal model over patches, a local one over bytes (MegaByte: Yu et al. 2023, arXiv:2305.07185).

    A byte's local vector is a sum of learned vectors for it and the `context_bytes` - 1 before it. A patch is a linear
    map of the local vectors in it. What predicts the next byte is the local vector plus what the transformer says of
    the patches before, through a perceptron that is part of the head: it runs only where a likelihood is wanted, so
    that embedding a text costs no more than its patches. `pooled` is the transformer's vector of the last patch, or,
    with a pooler, the mean over the patches of what the pooler makes of them.

    Args:
        width, depth, heads: of the transformer.
        patch_bytes: bytes per patch.
        context_bytes: how far the local vectors look back.
        max_length: bytes and the two special tokens.
        mlp_ratio: width of the perceptrons over that of the transformer.
        dropout: in attention and perceptrons.
        language_first: for a tower that learns to write before it learns to align. What an untrained transformer says
            is noise to the prediction, which learns first of all to drown it in a constant, and then all texts have
            nearly the same vector (cosine .9999). With this, patches have unit variance, and the transformer has no
            bias and is not heard at the start. In configs/demo.yaml, which aligns from the start, it learns slower.
        pooler_depth: blocks that see the whole text, behind the transformer, and that predict nothing. The vector that
            predicts what follows a text need not say what is in it; with a pooler the language model is not bent for
            that.
    """

    def __init__(
        self,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        patch_bytes: int = 6,
        context_bytes: int = 8,
        max_length: int = 256,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        language_first: bool = False,
        pooler_depth: int = 0,
    ) -> None:
        check_sizes(width, depth, heads, mlp_ratio)
        at_least(1, patch_bytes=patch_bytes, context_bytes=context_bytes)
        at_least(0, pooler_depth=pooler_depth)
        super().__init__(preprocess=BytePreprocess(max_length), width=width, axis=Axis("tokens"))
        self.end_id, self.patch_bytes, self.context_bytes = END, patch_bytes, context_bytes
        self.embedding = nn.Embedding(context_bytes * (VOCABULARY + 1), width)  # one table after another
        self.patch = nn.Linear(patch_bytes * width, width)
        self.patch_norm = nn.LayerNorm(width) if language_first else nn.Identity()
        self.transformer = Transformer(width, depth, heads, mlp_ratio, dropout, causal=True)
        self.first = nn.Parameter(torch.zeros(width))
        self.spread = nn.Linear(width, patch_bytes * width)
        self.local = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)
        self.pooler: Transformer | None = None
        if pooler_depth:
            self.pooler = Transformer(width, pooler_depth, heads, mlp_ratio, dropout)
        nn.init.normal_(self.embedding.weight, std=0.05)
        if language_first:
            for name, parameter in self.transformer.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
            nn.init.zeros_(self.spread.weight)
            nn.init.zeros_(self.spread.bias)

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        if mask is None:
            mask = torch.ones_like(values, dtype=torch.bool)
        ids, real, back = to_front(values, mask)
        ids = functional.pad(ids.masked_fill(~real, NOTHING), (0, -ids.shape[1] % self.patch_bytes), value=NOTHING)
        local = self._local_vectors(ids)
        patches = self.patch_norm(self.patch(functional.gelu(local).unflatten(1, (-1, self.patch_bytes)).flatten(2)))
        seen = self.transformer(patches)
        before = torch.cat([self.first.to(seen.dtype).expand(len(seen), 1, -1), seen[:, :-1]], 1)
        sequence = self.spread(before).unflatten(2, (self.patch_bytes, -1)).flatten(1, 2) + local
        sequence = sequence[:, : values.shape[1]]
        pooled = self._pooled(seen, real[:, :: self.patch_bytes])
        if back is not None:
            sequence = sequence.gather(1, back.unsqueeze(-1).expand_as(sequence))
        return Tokens(sequence, mask, pooled)

    def _pooled(
        self, seen: Float[Tensor, "batch patches width"], mask: Bool[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch width"]:
        if self.pooler is None:
            return pool_last(seen, mask)
        return Tokens.mean_pooled(self.pooler(seen, mask), mask).pooled

    def _local_vectors(self, ids: Tensor) -> Float[Tensor, "batch length width"]:
        """Sum over the last `context_bytes` bytes, each through the table of its distance."""
        padded = functional.pad(ids, (self.context_bytes - 1, 0), value=NOTHING)
        windows = padded.unfold(1, self.context_bytes, 1).flip(2)
        tables = torch.arange(self.context_bytes, device=ids.device) * (VOCABULARY + 1)
        bags = functional.embedding_bag((windows + tables).flatten(0, 1), self.embedding.weight, mode="sum")
        return bags.unflatten(0, ids.shape)

    def logits(self, sequence: Float[Tensor, "*positions width"]) -> Float[Tensor, "*positions vocabulary"]:
        """Tied to the table of the current byte."""
        return functional.linear(self.norm(sequence + self.local(sequence)), self.embedding.weight[:VOCABULARY])

    def layers(self) -> list[nn.Module]:
        *blocks, last = self.transformer.blocks
        head = nn.ModuleList([last, self.transformer.norm, self.spread, self.local, self.norm])
        start = nn.ModuleList([self.embedding, self.patch, self.patch_norm, nn.ParameterList([self.first])])
        # one layer of its own: `trainable: {encoder.text: 1}` trains it and leaves the language model as it is
        pooler = [] if self.pooler is None else [self.pooler]
        return [start, *blocks, head, *pooler]
