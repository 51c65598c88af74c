"""The contract of losses."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.batch import Embeddings
from mmalign.model import components_behind


class Loss(nn.Module):
    """`loss(embeddings) -> scalar`: sees tensors, never the model, the configuration or the rank.

    Contract of every subclass:
      * a sample that lacks a modality is neither an anchor nor a negative;
      * samples of the same group are positives of each other;
      * an empty pair gives 0 with a gradient of 0 for every input and parameter, never NaN;
      * with `embeddings.rows` set, only these rows are anchors, the others serve as their counterparts, and the result
        is the sum over these anchors divided by the number of anchors among *all* rows: the results of all ranks add up
        to the loss of the one big batch.
    """

    pair: tuple[str, str]
    """The names of the two modalities that this loss aligns: what was trained together (see "emergent")."""

    @abstractmethod
    def forward(self, embeddings: Embeddings) -> Float[Tensor, ""]: ...

    def reaches(self) -> set[str]:
        """Globs of the model's components that get a gradient from it; a stage freezes what nothing reaches."""
        return {glob for modality in self.pair for glob in components_behind(modality)}

    def anchor_count(self, embeddings: Embeddings) -> Float[Tensor, ""]:
        """What the result is divided by: by default the samples, of all ranks, that have both modalities."""
        nowhere = torch.zeros_like(embeddings.group, dtype=torch.bool)
        a, b = (embeddings.present.get(name, nowhere) for name in self.pair)
        return (a & b).sum().to(torch.get_default_dtype())
