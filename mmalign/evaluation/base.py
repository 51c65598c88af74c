"""The contract of evaluators."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmalign.data.config import suggestion
from mmalign.evaluation.table import Row

if TYPE_CHECKING:
    from mmalign.model import Aligner


@dataclass(frozen=True)
class Moment:
    """When an evaluation takes place: what an evaluator copies into its rows."""

    run: str
    stage: str
    stage_index: int
    step: int
    seed: int
    trained_pairs: frozenset[frozenset[str]]
    """Pairs of modalities that a loss has aligned up to now; other pairs are emergent."""


class Evaluator(ABC):
    """`evaluate(model, moment) -> rows`. Exactly one row of them has `main=True`.

    A number that does not exist (a modality the model does not have yet, an empty gallery) is NaN, never 0. The model
    is in eval mode and gradients are off while an evaluator runs; results depend on weights and data only.
    """

    def check(self, model: "Aligner") -> None:  # noqa: B027
        """Called before a run trains.

        Raises:
            ValueError: the main score would be NaN at any time of the run; names the setting.
        """

    @abstractmethod
    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]: ...

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, such as a reference taken before stage 1; tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """The inverse of `state_dict`; an empty state means that nothing was kept yet."""


def require(key: str, name: str, known: Iterable[str]) -> None:
    """For `check`: the setting `key` names a modality, which must be one of the known.

    Raises:
        ValueError: it is none; names the setting.
    """
    names = list(known)
    if name not in names:
        raise ValueError(f"{key}: model and data have no {name!r}{suggestion(name, names)}")
