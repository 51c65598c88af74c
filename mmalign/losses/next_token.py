"""Next-token prediction: what keeps, or teaches, a causal text tower's language."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Embeddings
from mmalign.losses.base import Loss


class NextToken(Loss):
    """Mean negative log-likelihood of a token of language text, in nats.

    Computes Σ nll / Σ tokens over the rows of plain language text (captions don't count). Every token weighs the same,
    however long its row is.

    Inputs: `likelihoods[modality]`, which a causal tower fills for rows marked as `language` in the batch.
    Requirements: a tower that keeps its language-model head. A batch without language text gives 0.

    Paper: Bengio et al. 2003, A Neural Probabilistic Language Model.

    Example:
        losses:
          language:
            class_path: mmalign.losses.NextToken
            init_args: {modality: text}
    """

    def __init__(self, modality: str = "text") -> None:
        """
        Args:
            modality: the causal text tower's name.
        """
        super().__init__()
        self.pair = (modality, modality)

    def reaches(self) -> set[str]:
        return {f"encoder.{self.pair[0]}"}  # likelihoods come out of the tower, before its projection

    def anchor_count(self, embeddings: Embeddings) -> Float[Tensor, ""]:
        """Tokens predicted, over all rows."""
        return self._likelihoods(embeddings)[:, 1].detach().sum()

    def forward(self, embeddings: Embeddings) -> Float[Tensor, ""]:
        start, stop = embeddings.rows or (0, len(embeddings.group))
        own = self._likelihoods(embeddings)[start:stop, 0].sum()
        return own / self.anchor_count(embeddings).clamp(min=1)

    def _likelihoods(self, embeddings: Embeddings) -> Float[Tensor, "batch 2"]:
        found = embeddings.likelihoods.get(self.pair[0])
        if found is not None:
            return found if found.dtype == torch.float64 else found.float()
        # nothing to predict: zeros, still part of the graph
        linked = sum((vectors[:0].sum() for vectors in embeddings.vectors.values()), torch.zeros(()))
        return linked + torch.zeros(len(embeddings.group), 2, device=embeddings.group.device)
