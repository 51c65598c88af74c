"""From decoded samples to the tensors of a batch."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmalign.batch import Values
from mmalign.data.decode import WHITE, decode
from mmalign.data.faults import Limits, SampleError
from mmalign.data.sample import Variant
from mmalign.encoders.base import Preprocess

_SHORT_RECORDING = 1600


def prepare(preprocess: Preprocess, variant: Variant, limits: Limits, generator: np.random.Generator | None) -> Tensor:
    """One member -> the encoder's input for one sample.

    Raises:
        SampleError: it cannot be decoded, or the encoder's preprocessing refuses it.
    """
    background = getattr(preprocess, "background", WHITE)
    size = _needed_side(preprocess, generator)
    excerpt = partial(preprocess.excerpt, generator=generator)
    value = decode(preprocess.kind, variant.name, variant.data, limits, size, background, excerpt)
    try:
        return preprocess.prepare(value, generator)
    except MemoryError:
        raise
    except Exception as error:  # a mistake in the preprocessing hits every sample, and thereby stops the run
        raise SampleError(f"{variant.name!r}: {type(error).__name__}: {error}", "prepare") from error


def _needed_side(preprocess: Preprocess, generator: np.random.Generator | None) -> int | None:
    """How long the shorter side of a picture must be, so that decoding it at a reduced scale costs no detail."""
    size: Any = getattr(preprocess, "size", None)
    if isinstance(size, tuple | list):
        size = max(size, default=None)
    if preprocess.kind != "image" or not isinstance(size, int):
        return None
    smallest_part = getattr(preprocess, "scale_min", 1.0) if generator is not None else 1.0
    return math.ceil(size / math.sqrt(max(smallest_part, 1e-3)))


def collate(preprocess: Preprocess, rows: list[Tensor | None]) -> Values:
    """Rows of one modality (None where a sample lacks it) -> its part of a batch, also when no row has it."""
    present = torch.tensor([row is not None for row in rows])
    if present.any():
        values, mask = preprocess.collate(rows)
        return Values(present, values, mask)
    values, mask = preprocess.collate([_example(preprocess), *rows[1:]])
    values = torch.full_like(values, preprocess.padding)
    return Values(present, values, None if mask is None else torch.zeros_like(mask))


def collate_features(rows: list[Tensor | None], width: int) -> Values:
    """The same for cached outputs [width] of a frozen tower."""
    features = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        if row is not None:
            features[i] = row
    return Values(torch.tensor([row is not None for row in rows]), features=features)


def _example(preprocess: Preprocess) -> Tensor:
    """A row of the right shape, made from a value without content."""
    from PIL import Image

    examples = {
        "image": lambda: Image.new("RGB", (8, 8)),
        "audio": lambda: (np.zeros(_SHORT_RECORDING, np.float32), 16_000),
        "text": lambda: "a",
        "array": lambda: np.zeros((1, getattr(preprocess, "channels", 1)), np.float32),
    }
    return preprocess.prepare(examples[preprocess.kind](), None)
