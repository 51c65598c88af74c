"""The contract of losses."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from mmalign.batch import Embeddings


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
