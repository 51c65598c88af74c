"""Freezing: what is not trained cannot be forgotten."""

from fnmatch import fnmatchcase

from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan


class Frozen(Retention):
    """Does not train some components at all, and others no more once a stage has trained them.

    Loss: none. Stored: nothing. Cost: less than nothing, as frozen towers build no graph and can be cached.

    With a frozen text tower, language changes by exactly 0. An alignment stays exactly as it is when the towers and the
    projections of both its modalities are frozen: the default of `after_first` and `components: [encoder.*]` do that.
    The new modality then has to come to the old space, as in LiT (Zhai et al. 2022, "LiT: Zero-Shot Transfer with
    Locked-image text Tuning", CVPR).

    Example:
        retention:
          frozen:
            class_path: mmalign.retention.Frozen
            init_args: {components: [encoder.text]}
    """

    def __init__(self, components: list[str], after_first: list[str] | None = None) -> None:
        """
        Args:
            components: globs of components that are never trained ("encoder.text", "encoder.*").
            after_first: globs of components that are trained in the first stage whose losses use their modality, and
                frozen from then on; None means the projections ("projection.*").

        Raises:
            ValueError: at the start of a stage: a glob matches no component.
        """
        self.components = components
        self.after_first = ["projection.*"] if after_first is None else after_first

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        names = list(model.components())
        for glob in [*self.components, *self.after_first]:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ValueError(f"retention.{self.name or 'frozen'}: {glob!r} matches none of the components {names}")
        old = plan.past_modalities()
        for name in names:
            past = name.partition(".")[2] in old or (name == "fusion" and bool(old))
            if _matches(name, self.components) or (past and _matches(name, self.after_first)):
                # moved to the end, where it counts: the last glob that matches a component decides
                plan.trainable.pop(name, None)
                plan.trainable[name] = "none"


def _matches(name: str, globs: list[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
