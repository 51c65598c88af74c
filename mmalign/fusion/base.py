"""The contract of fusions."""

from abc import abstractmethod

from jaxtyping import Bool, Float
from torch import Tensor, nn


class Fusion(nn.Module):
    """Any non-empty subset of modalities in, one joint embedding out.

    Subclasses are told the modality names and `dim` by `build`, which the model calls once, because a YAML should not
    have to repeat them.
    """

    @abstractmethod
    def build(self, modalities: list[str], dim: int) -> None:
        """Create the parameters for these modalities (sorted by the caller) of `dim` channels each."""

    @abstractmethod
    def forward(
        self, vectors: dict[str, Float[Tensor, "batch dim"]], present: dict[str, Bool[Tensor, " batch"]]
    ) -> Float[Tensor, "batch dim"]:
        """Projected (not yet normalised) vectors of any subset of the modalities -> joint embedding, not normalised.

        A row's result depends on its present modalities only, whatever stands in the rows of the absent ones, and is the
        same whether an absent modality is missing from the dict or masked by `present`.
        """
