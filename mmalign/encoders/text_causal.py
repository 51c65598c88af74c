"""What a causal text tower offers besides embeddings: likelihoods, for next-token losses and language ability."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmalign.batch import Tokens
from mmalign.encoders.base import Encoder, Preprocess


@dataclass(frozen=True)
class TextPreprocess(Preprocess):
    """Text -> token ids, cut at `max_length`; rows are padded at their end.

    Attributes:
        max_length: tokens, special ones included.
    """

    max_length: int

    kind: ClassVar[str] = "text"

    def encode(self, text: str) -> list[int]:
        """All ids that the tower sees, at least one and at most `max_length`."""
        raise TypeError(f"{type(self).__name__} does not say how to encode text")

    def prepare(self, value: Any, generator: np.random.Generator | None) -> Tensor:
        return torch.tensor(self.encode(value), dtype=torch.long)


@dataclass(frozen=True)
class CausalTextPreprocess(TextPreprocess):
    """Adds how text is encoded when its likelihood is wanted."""

    def encode_whole(self, text: str) -> list[int]:
        """A start token and all of the text's own ids, uncut and without an end token."""
        raise TypeError(f"{type(self).__name__} does not say how to encode text for scoring")


def last_real(mask: Bool[Tensor, "batch length"]) -> Int[Tensor, " batch"]:
    """The index of each row's last real position, wherever its padding is; 0 for a row without any."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (positions * mask).amax(1)


def pool_last(
    sequence: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch width"]:
    """The vector at each row's last real position."""
    return sequence[torch.arange(len(sequence), device=sequence.device), last_real(mask)]


def scoring_windows(ids: list[int], size: int) -> Iterator[tuple[list[int], int]]:
    """Cut a long text into windows of at most `size` ids that overlap by half, so that every id but the first is
    predicted exactly once, with at least half a window before it (where there is so much).

    Yields (ids of the window, index of the first id that is predicted in it).
    """
    yield ids[:size], 1
    done, overlap = size, size // 2
    while done < len(ids):
        begin = done - overlap
        yield ids[begin : begin + size], overlap
        done = begin + size


class CausalLanguageModel(Encoder):
    """A text tower that predicts each token from those before it.

    `Tokens.sequence` holds the vectors that the language-model head reads; `pooled` is one that has seen all tokens.

    Attributes:
        end_id: the id that `preprocess` appends to mark the end, or None. It is part of what the tower pools, but it is
            never scored: likelihoods are those of the text itself.
        largest_logits_bytes: likelihoods are computed in chunks whose logits stay below this.
    """

    preprocess: CausalTextPreprocess
    end_id: int | None = None
    largest_logits_bytes: int = 100_000_000

    @abstractmethod
    def logits(self, sequence: Float[Tensor, "*positions width"]) -> Float[Tensor, "*positions vocabulary"]:
        """Vectors of `Tokens.sequence` -> scores of the next token."""

    def likelihood(
        self, tokens: Tokens, values: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch 2"]:
        """Negative log-likelihood in nats of each row's text, and the number of tokens predicted in it.

        Args: tokens as `forward(values, mask)` gave them. The first token (the start token) is given, not predicted.
        """
        wanted = mask[:, 1:] & mask[:, :-1]
        if self.end_id is not None:
            wanted = wanted & (values[:, 1:] != self.end_id)
        nats = self._nats(tokens.sequence, values, wanted)
        return torch.stack([nats, wanted.sum(1).to(nats.dtype)], 1)

    def _nats(
        self,
        sequence: Float[Tensor, "batch length width"],
        ids: Int[Tensor, "batch length"],
        wanted: Bool[Tensor, "batch targets"],
    ) -> Float[Tensor, " batch"]:
        """Sum over a row's `wanted` targets, which are ids[:, 1:]. Only these positions meet the vocabulary."""
        vectors, targets = sequence[:, :-1][wanted], ids[:, 1:][wanted]
        owner = torch.arange(len(ids), device=ids.device)[:, None].expand_as(wanted)[wanted]
        if len(targets) == 0:
            return sequence.sum((1, 2)).float() * 0  # keeps the graph: a gradient of zero
        vocabulary = self.logits(vectors[:1]).shape[-1]
        chunk = max(1, self.largest_logits_bytes // (4 * vocabulary))
        recompute = torch.is_grad_enabled() and len(targets) > chunk
        parts = []
        for start in range(0, len(targets), chunk):
            part = (vectors[start : start + chunk], targets[start : start + chunk])
            # Otherwise the graph would hold every chunk's logits until the backward pass.
            parts.append(checkpoint(self._cross_entropy, *part, use_reentrant=False) if recompute else
                         self._cross_entropy(*part))  # fmt: skip
        nats = torch.cat(parts)
        return nats.new_zeros(len(ids)).index_add(0, owner, nats)

    def _cross_entropy(self, vectors: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self.logits(vectors).float(), targets, reduction="none")

    @torch.no_grad()
    def score_text(
        self, texts: list[str], positions_per_batch: int = 8192
    ) -> tuple[Float[Tensor, " texts"], Int[Tensor, " texts"], Int[Tensor, " texts"]]:
        """Teacher-forced likelihood of whole texts of any length, every token predicted exactly once.

        Texts longer than the tower's `max_length` are scored in overlapping windows (see `scoring_windows`). Call it in
        eval mode.

        Returns:
            (negative log-likelihood in nats [texts], tokens predicted [texts], bytes of UTF-8 [texts]). Bits per byte
            are nats.sum() / (ln 2 · bytes.sum()), perplexity per token is exp(nats.sum() / tokens.sum()).
        """
        device = next(self.parameters()).device
        windows = [
            (owner, ids, first)
            for owner, text in enumerate(texts)
            for ids, first in scoring_windows(self.preprocess.encode_whole(text), self.preprocess.max_length)
        ]
        windows.sort(key=lambda window: len(window[1]))  # rows of a batch have about the same length
        nats = torch.zeros(len(texts), dtype=torch.float64)
        tokens = torch.zeros(len(texts), dtype=torch.long)
        while windows:
            rows = max(1, positions_per_batch // len(windows[-1][1]))
            batch, windows = windows[-rows:], windows[:-rows]
            values, mask = self.preprocess.collate([torch.tensor(ids, dtype=torch.long) for _, ids, _ in batch])
            assert mask is not None
            first = torch.tensor([first for _, _, first in batch])
            wanted = mask[:, 1:] & (torch.arange(1, mask.shape[1])[None] >= first[:, None])
            values, mask, wanted = values.to(device), mask.to(device), wanted.to(device)
            owners = torch.tensor([owner for owner, _, _ in batch])
            nats.index_add_(0, owners, self._nats(self(values, mask).sequence, values, wanted).double().cpu())
            tokens.index_add_(0, owners, wanted.sum(1).cpu())
        return nats, tokens, torch.tensor([len(text.encode("utf-8")) for text in texts], dtype=torch.long)
