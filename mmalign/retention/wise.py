"""Interpolation between the weights before and after a stage."""

from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan, tensor_bytes


class WiSE(Retention):
    """Replaces the weights at the end of a stage by (1 − alpha) · before + alpha · after.

    Loss: none. Stored: within a stage, one copy of the components concerned. Cost: none a step. The whole curve over
    alpha costs no training either: see `sweep`.

    Only what meant something before the stage is interpolated; an average with the random weights of a new tower would
    destroy it.

    Paper: Wortsman et al. 2022, "Robust Fine-Tuning of Zero-Shot Models", CVPR (WiSE-FT).

    Example:
        retention:
          wise: {class_path: mmalign.retention.WiSE, init_args: {alpha: 0.5}}
    """

    def __init__(self, alpha: float = 0.5, components: list[str] | None = None) -> None:
        """
        Args:
            alpha: 0 keeps the weights of before, 1 those of after.
            components: globs of the components to interpolate ("encoder.text" for a pretrained tower), in every stage;
                None means those of all modalities that losses of earlier stages used.

        Raises:
            ValueError: alpha is not in [0, 1]; at the start of a stage: a glob matches no component.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"WiSE: alpha is {alpha}, must be in [0, 1]")
        self.alpha = alpha
        self.components = components
        self._before: dict[str, dict[str, Tensor]] = {}

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        names = list(model.components())
        for glob in self.components or []:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ValueError(f"retention.{self.name or 'wise'}: {glob!r} matches none of the components {names}")

    def begin(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        if self.components is None:
            old = plan.past_modalities()
            globs = [f"{part}.{name}" for name in old for part in ("encoder", "projection")]
            globs += ["fusion"] if old else []
        else:
            globs = self.components
        self._before = {
            name: {key: value.clone() for key, value in part.state_dict().items()}
            for name, part in model.components().items()
            if any(fnmatchcase(name, glob) for glob in globs)
        }

    def end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        components = model.components()
        for name, before in self._before.items():
            components[name].load_state_dict(interpolate(before, components[name].state_dict(), self.alpha))
        self._before = {}

    def bytes_stored(self) -> int:
        return sum(tensor_bytes(state) for state in self._before.values())


@torch.no_grad()
def interpolate(before: dict[str, Tensor], after: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 − alpha) · before + alpha · after, exact at 0 and 1; counters and other integers are those of after.

    Raises:
        ValueError: the two hold different names.
    """
    if before.keys() != after.keys():
        differing = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f"the weights before and after differ in their names, {differing[0]!r} among them; "
            "a method that replaces layers (LoRA) must be listed after this one"
        )
    return {
        name: torch.lerp(before[name].to(value), value, alpha) if value.is_floating_point() else value.clone()
        for name, value in after.items()
    }


def of_modalities(modalities: Collection[str]) -> Callable[[str], bool]:
    """Whether a name in a model's state belongs to the tower or projection of these modalities, or to the fusion.

    Names may start with "model.", as in checkpoints.
    """

    def belongs(name: str) -> bool:
        part, _, rest = name.removeprefix("model.").partition(".")
        return part == "fusion" or (part in ("encoders", "projections") and rest.partition(".")[0] in modalities)

    return belongs


def sweep(
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    alphas: Iterable[float],
    shared: Callable[[str], bool],
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """(alpha, weights) for every alpha: what WiSE would have left behind, from the checkpoints of two stages' ends.

    Args:
        before, after: the weights at the ends of two stages, by name.
        alphas: in [0, 1].
        shared: the names to interpolate (see `of_modalities`); all others are those of `after`.

    Raises:
        ValueError: a shared name is missing in one of the two.
    """
    old = {name: value for name, value in before.items() if shared(name)}
    new = {name: value for name, value in after.items() if shared(name)}
    for alpha in alphas:
        yield alpha, after | interpolate(old, new, alpha)
