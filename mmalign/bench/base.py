"""What a benchmark is: sides that run one after the other, and quantities that compare them."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

NO_BAR = "–"
"""Of a figure that is on record only."""


@dataclass(frozen=True)
class Settings:
    """Of one call of the command; the same for every side.

    Attributes:
        threads: of torch and of the libraries below it.
        scale: share of the full size; 1 is what the bars are meant for.
        device: "cpu" or "cuda", where both sides compute.
    """

    threads: int = 1
    scale: float = 1.0
    device: str = "cpu"

    def size(self, full: int, multiple: int = 1, least: int = 1) -> int:
        """`full` at this scale, rounded to a multiple."""
        return max(least, multiple, round(full * self.scale / multiple) * multiple)


@dataclass
class Outcome:
    """What a side's work returns.

    Attributes:
        seconds: of the work, where it times itself (a training's start is not its steps); None: all of it.
        values: further numbers, such as samples per second.
        arrays: what must be equal between two sides.
    """

    seconds: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One run of one side: `measures` holds "seconds", "bytes" (peak memory beyond the inputs), and the values."""

    measures: dict[str, float]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantity:
    """One row of the table: a measure of one side over that of another, or the difference of their arrays.

    Attributes:
        label: what is compared, in words.
        measure: a key of `Sample.measures`; for differences a key of `Sample.arrays`, or what several begin with
            before a point; then the largest difference counts, each array's relative to itself.
        side, other: names of the sides; without an `other`, the measure itself is the figure.
        peer: how the table calls the other side.
        bar: "<= 0.4", ">= 1.3": what must be reached; NO_BAR where nothing must.
        kind: "absolute" is the largest |a - b|; "relative" is the largest |a - b| over the largest |b|; "elementwise"
            is the largest |a - b| / |b|.
        unit: of the measure, for the figures beside the ratio.
        note: a word on this row.
    """

    label: str
    measure: str
    side: str
    other: str | None
    peer: str
    bar: str
    kind: Literal["ratio", "absolute", "relative", "elementwise"] = "ratio"
    unit: str = "s"
    note: str = ""


class Benchmark:
    """A few sides that do the same work in different ways.

    Attributes:
        name: on the command line and in the results.
        title: what is done, with its full sizes.
        device: the kind of device that it is meant for.
        sides: in the order in which the first pair runs; every second pair runs the other way round.
        needs: by side, the modules that have to be installed for it.
        environment: variables of all sides' processes.
        pairs: how often each side runs.
        quantities: the rows.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    device: ClassVar[str] = "cpu"
    sides: ClassVar[tuple[str, ...]]
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    environment: ClassVar[Mapping[str, str]] = {}
    pairs: ClassVar[int] = 5
    quantities: ClassVar[Sequence[Quantity]]

    def __init__(self, settings: Settings, folder: Path) -> None:
        """
        Args:
            folder: for files that all sides read; empty when `prepare` is called.
        """
        self.settings = settings
        self.folder = folder

    def prepare(self) -> None:
        """Write what all sides read; once, in a process of its own."""

    @abstractmethod
    def load(self, side: str) -> Callable[[], Outcome]:
        """Import, load and warm up everything, and return the work that is timed."""

    def note(self, quantity: Quantity) -> str:
        """A word on a row that depends on the machine."""
        return quantity.note

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: "Ceilings") -> str:
        """Why a bar is out of reach on this machine, in operations, bytes and ceilings; empty where nothing says so.

        Args:
            medians: by side and measure.
        """
        return ""


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at most, measured with the same threads.

    Attributes:
        matmul_flops: operations per second of a float32 matrix product.
        bf16_matmul_flops: the same in bfloat16.
        exp_per_second: exponentials of float32 numbers that lie in the cache.
        bytes_per_second: read and written when a large array is copied.
    """

    matmul_flops: float
    bf16_matmul_flops: float
    exp_per_second: float
    bytes_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)
