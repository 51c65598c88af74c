"""When each optimizer step of a training ended, whoever trains."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mmalign.batch import Embeddings
from mmalign.losses.infonce import InfoNCE

WARM_UP = 2
"""Steps that are not counted: allocations, lazy starts, and mmalign's count of operations fall into the first."""


@contextmanager
def step_times() -> Iterator[list[float]]:
    """Collects the time after every step of every torch optimizer; the same hook for mmalign and for its peers."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    found: list[float] = []

    def record(*_: Any) -> None:
        found.append(time.perf_counter())

    handle = register_optimizer_step_post_hook(record)
    try:
        yield found
    finally:
        handle.remove()


def step_seconds(times: list[float]) -> float:
    """Median seconds from one step's end to the next, all that lies between included: data, logging, checkpoints."""
    gaps = [after - before for before, after in zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False)]
    return statistics.median(gaps)


class RecordedInfoNCE(InfoNCE):
    """InfoNCE that remembers its values.

    Attributes:
        recorded: of all calls so far.
    """

    def __init__(self, a: str, b: str) -> None:
        super().__init__(a, b)
        self.recorded: list[float] = []

    def forward(self, embeddings: Embeddings) -> Tensor:
        value = super().forward(embeddings)
        self.recorded.append(float(value.detach()))
        return value
