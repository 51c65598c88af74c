"""The contract of encoders, and of the preprocessing that each of them owns."""

import inspect
import json
from abc import abstractmethod
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.encoders.cpu_attention import keep_attention_in_float32


@dataclass(frozen=True)
class Axis:
    """What one position of an encoder's sequence means.

    `kind` is "patches" (a grid of `rows` × `columns`, row by row; a leading class token is not part of the sequence),
    "frames" (`hertz` positions a second) or "tokens" (of text).
    """

    kind: str
    rows: int | None = None
    columns: int | None = None
    hertz: float | None = None


@dataclass(frozen=True)
class Preprocess:
    """How a stored member of a sample becomes a row of the encoder's input. Plain data plus pure methods: picklable,
    cheap to send to a worker, and written into checkpoints and exports by `spec`.

    Subclasses add their settings as fields and implement `decode`. `kind` is what the data layer decodes for it:
    "image" (a PIL picture), "audio" (a float32 waveform [samples] and its rate), "text" (a str) or "array"
    (a float32 array [length, channels]).
    """

    kind: ClassVar[str] = "array"

    @property
    def spec(self) -> dict[str, Any]:
        """Every setting, as JSON-able values, with the class's name."""
        settings = json.loads(json.dumps(asdict(self)))  # tuples become lists, as in the JSON that is read back
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **settings}

    def excerpt(self, frames: int, rate_hz: int, generator: np.random.Generator | None) -> tuple[int, int]:
        """For kind "audio": the frames start … stop-1 of a recording that `prepare` is given; others are not read.

        Called before `prepare`, with the same generator.
        """
        return 0, frames

    def prepare(self, value: Any, generator: np.random.Generator | None) -> Tensor:
        """One sample's decoded value -> one tensor, without a batch axis.

        `generator` drives augmentation; None means evaluation: no augmentation, always the same result.
        For kind "audio" the value is a tuple (waveform [samples], sample_rate_hz).
        """
        raise TypeError(f"{type(self).__name__} does not say how to prepare a sample")

    def collate(self, rows: list[Tensor | None]) -> tuple[Tensor, Bool[Tensor, "batch length"] | None]:
        """Rows of a batch (None where absent; at least one is present) -> (values, mask).

        By default rows of equal shape are stacked without a mask, and rows that differ in their first axis are padded
        with zeros at the end, with a mask. Absent rows are zeros, and masked throughout.
        """
        example = next(row for row in rows if row is not None)
        if self.variable_length:
            longest = max(len(row) for row in rows if row is not None)
            values = example.new_full((len(rows), longest, *example.shape[1:]), self.padding)
            mask = torch.zeros(len(rows), longest, dtype=torch.bool)
            for i, row in enumerate(rows):
                if row is not None:
                    values[i, : len(row)] = row
                    mask[i, : len(row)] = True
            return values, mask
        zero = torch.zeros_like(example)
        return torch.stack([zero if row is None else row for row in rows]), None

    variable_length: ClassVar[bool] = True
    padding: ClassVar[int | float] = 0


@dataclass(frozen=True)
class SeriesPreprocess(Preprocess):
    """Time series stored as `.npy` arrays [length, channels]: cast to float32, scaled, cut at `max_length`."""

    channels: int
    hertz: float
    max_length: int = 4096
    mean: float = 0.0
    std: float = 1.0

    kind: ClassVar[str] = "array"

    def prepare(self, value: np.ndarray, generator: np.random.Generator | None) -> Tensor:
        if value.ndim != 2 or value.shape[1] != self.channels:
            raise ValueError(f"expected an array [length, {self.channels}], found {list(value.shape)}")
        series = torch.from_numpy(np.ascontiguousarray(value[: self.max_length], dtype=np.float32))
        return (series - self.mean) / self.std


class Encoder(nn.Module):
    """One modality's tower: `forward(values, mask) -> Tokens`.

    A subclass sets `preprocess`, `width` (of `pooled` and `sequence`) and `axis` through this constructor, and
    implements `forward`. In evaluation mode the embedding of a sample must not depend on its neighbours in the batch.
    The first one that is made sets how this process computes attention under autocast on a CPU, see `cpu_attention`.

    Attributes:
        init_args: arguments of the constructor, defaults included, as JSON-able values; what is no plain value stands
            there as its class. Settings that add no parameter (heads, pooling) decide what a tower computes, too.
    """

    init_args: dict[str, Any]

    def __new__(cls, *given: Any, **named: Any) -> "Encoder":
        tower = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind_partial(tower, *given, **named)  # a copy is made without any
        except TypeError:  # the constructor, which is called next, says better what is wrong
            return tower
        bound.apply_defaults()
        tower.init_args = {name: _plain(value) for name, value in list(bound.arguments.items())[1:]}
        return tower

    def __init__(self, preprocess: Preprocess, width: int, axis: Axis) -> None:
        super().__init__()
        keep_attention_in_float32()
        self.preprocess = preprocess
        self.width = width
        self.axis = axis

    @abstractmethod
    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        """Args: values as `preprocess.collate` makes them, mask likewise. Returns Tokens of width `self.width`."""

    def in_its_precision(self, values: Tensor) -> Tensor:
        """Data are float32, the weights may be float64; token numbers stay as they are."""
        return values.to(next(self.parameters(), values).dtype) if values.is_floating_point() else values

    def real_positions(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None) -> Tensor | None:
        """Which of the values [batch, length] are no padding; None where values have no such positions."""
        return mask

    def layers(self) -> list[nn.Module]:
        """The tower's parts from input to output; "train the last n" means the last n of these."""
        return list(self.children())

    @property
    def spec(self) -> dict[str, Any]:
        """Preprocessing, axis and width: what a reader of a checkpoint needs to feed this tower."""
        return {"preprocess": self.preprocess.spec, "axis": asdict(self.axis), "width": self.width}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path | Enum | torch.dtype):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": _name(type(value))} | {key: _plain(item) for key, item in vars(value).items()}
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _name(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"
