"""Outputs of a frozen tower, computed once and read from mapped memory instead of decoding and embedding again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.faults import SampleError


class FeatureCache:
    """Pooled outputs [width] of every variant of one modality of a data set; made by mmalign.data.precompute.

    Attributes:
        digest: hash of all that the outputs depend on: weights, preprocessing, members, tars, limits.
        width: of the tower.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        described = json.loads((self.directory / "cache.json").read_text(encoding="utf-8"))
        self.digest: str = described["digest"]
        self.width: int = described["width"]
        self._map()

    @classmethod
    def find(cls, directory: Path, digest: str) -> "FeatureCache | None":
        """The cache with this digest, when it is there and complete."""
        folder = Path(directory) / digest
        return cls(folder) if (folder / "cache.json").exists() else None

    def _map(self) -> None:
        self._features = np.asarray(np.load(self.directory / "features.npy", mmap_mode="r", allow_pickle=False))
        self._offsets = np.asarray(np.load(self.directory / "offsets.npy", mmap_mode="r", allow_pickle=False))

    def __len__(self) -> int:
        """Rows, of all samples."""
        return len(self._features)

    def row(self, sample: int, variant: int) -> Float[Tensor, " width"]:
        """The output for one variant, counted as in RawSample.variants.

        Raises:
            SampleError: the variant could not be used when the cache was made.
        """
        start, stop = self._offsets[sample : sample + 2].tolist()
        if variant < stop - start:
            row = np.array(self._features[start + variant])
            if not np.isnan(row[0]):
                return torch.from_numpy(row)
        raise SampleError(f"variant {variant} could not be used when its features were computed")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_features", "_offsets")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()
