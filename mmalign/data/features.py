"""Outputs of a frozen tower, computed once and read from mapped memory instead of decoding and embedding again.

Beside them stands what else a reader wants of a sample, so that the shards are not read for it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.faults import SampleError
from mmalign.data.sample import SampleInfo

_ARRAYS = ("features", "variants", "samples", "offsets")


class FeatureCache:
    """Pooled outputs [width] of every variant of one modality of a data set; made by mmalign.data.precompute.

    Files: cache.json; features.npy [variants, width], a row of NaN where a variant could not be used; variants.npy
    [variants], numbers of the (name, language) in cache.json; samples.npy, bytes of "KEY\\0GROUP" for each sample, none
    where it could not be read; offsets.npy [2, samples + 1], where each starts in the first two and in the third.

    Attributes:
        digest: hash of all that the outputs depend on: weights, preprocessing, members, tars, limits.
        width: of the tower.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        described = json.loads((self.directory / "cache.json").read_text(encoding="utf-8"))
        self.digest: str = described["digest"]
        self.width: int = described["width"]
        self._kinds: list[tuple[str, str]] = [(name, language) for name, language in described["variants"]]
        self._map()

    @classmethod
    def find(cls, directory: Path, digest: str) -> "FeatureCache | None":
        """The cache with this digest, when it is there and complete."""
        folder = Path(directory) / digest
        return cls(folder) if (folder / "cache.json").exists() else None

    def _map(self) -> None:
        self._features, self._variants, self._samples, (self._offsets, self._sample_offsets) = (
            np.asarray(np.load(self.directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in _ARRAYS
        )

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

    def sample(self, index: int) -> SampleInfo | None:
        """A sample as its shard has it; None where it could not be read when the cache was made."""
        first, last = self._sample_offsets[index : index + 2].tolist()
        if first == last:
            return None
        key, _, group = self._samples[first:last].tobytes().decode("utf-8", "surrogatepass").partition("\0")
        start, stop = self._offsets[index : index + 2].tolist()
        return SampleInfo(key, group, [self._kinds[kind] for kind in self._variants[start:stop].tolist()])

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_features", "_variants", "_samples", "_offsets", "_sample_offsets")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()
