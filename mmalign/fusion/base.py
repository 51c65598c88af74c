"""The contract of fusions."""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Fusion(nn.Module):
    """Any non-empty subset of modalities in, one joint embedding out.

    In training all present modalities go in. So a loss between "fused" and a modality contrasts that modality also with
    itself, which a fusion can learn to pass through; evaluations leave the opposite side out (see Retrieval).

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
        """Unit vectors of any subset of the modalities -> joint embedding, not yet normalised.

        A row's result depends on its present modalities only, whatever stands in the rows of the absent ones, and is
        the same whether an absent modality is missing from the dict or masked by `present`.
        """


def presence(
    modalities: list[str],
    vectors: dict[str, Float[Tensor, "batch dim"]],
    present: dict[str, Bool[Tensor, " batch"]],
) -> tuple[Float[Tensor, "batch modalities dim"], Bool[Tensor, "batch modalities"]]:
    """Vectors of all `modalities` in order, and which are present; zeros wherever one is not, whatever stood there.

    Raises:
        ValueError: there is no vector at all, or one of a modality that the fusion was not built for.
    """
    if unknown := sorted(set(vectors) - set(modalities)):
        raise ValueError(f"the fusion was built for {', '.join(modalities)}, not for {', '.join(unknown)}")
    if not vectors:
        raise ValueError("a fusion needs at least one modality")
    example = next(iter(vectors.values()))
    nowhere = torch.zeros(len(example), dtype=torch.bool, device=example.device)
    mask = torch.stack([present[name] if name in vectors else nowhere for name in modalities], 1)
    stacked = torch.stack([vectors.get(name, torch.zeros_like(example)) for name in modalities], 1)
    # where, not a product: NaN times zero is NaN, and its gradient, too
    return torch.where(mask.unsqueeze(-1), stacked, torch.zeros_like(stacked)), mask
