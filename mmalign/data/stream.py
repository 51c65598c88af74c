"""What every step of a stage sees: a pure function of seed, stage and step."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmalign.batch import Batch
from mmalign.data.bound import BoundData
from mmalign.data.collate import collate, collate_features, prepare
from mmalign.data.config import ShardData
from mmalign.data.faults import Limits, SampleError
from mmalign.data.features import FeatureCache
from mmalign.data.order import KeyedGenerator, Mixture, keyed_hash, permute
from mmalign.data.sample import SampleInfo
from mmalign.data.select import group_of, variants_in
from mmalign.encoders.base import Preprocess

_REPLACEMENTS = 16


@dataclass
class _Row:
    key: str
    group: int
    data: BoundData
    values: dict[str, Tensor] = field(default_factory=dict)


class Stream(Dataset):
    """`stream[step]` is this rank's part of the global batch of that step.

    The global batch does not depend on the number of ranks, of workers, or of interruptions. Each data set is drawn
    without repetition until it is used up (an epoch), then in another order. Where several members can stand for a
    modality, one is picked. The pick and the augmentation depend on (seed, stage, epoch, key, modality). A sample that
    cannot be used is replaced by another one of its data set, chosen by position and attempt, and goes into
    `Batch.faults`.

    Args:
        sources: what is drawn from, by name, each with its weight relative to the others.
        preprocess: of every encoder, by modality.
        batch_size: samples of the global batch.
        seed: of the run.
        stage: name of the stage.
        steps: length of the stream.
        rank, world: this process draws rows [rank, rank + 1) * batch_size / world.
        limits: what counts as an unusable sample.
        features: by data set and modality, cached outputs that are used in place of values. Of a data set with all its
            modalities among them nothing is read.

    Raises:
        FileNotFoundError, ValueError: the settings or the data do not allow it; before anything is decoded.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[ShardData, float]],
        preprocess: Mapping[str, Preprocess],
        batch_size: int,
        seed: int,
        stage: str,
        steps: int,
        rank: int = 0,
        world: int = 1,
        limits: Limits | None = None,
        features: Mapping[str, Mapping[str, FeatureCache]] | None = None,
    ) -> None:
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} does not divide by the {world} processes")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes")
        self.limits = limits or Limits()
        self.preprocess = dict(preprocess)
        self.batch_size, self.seed, self.stage, self.steps = batch_size, seed, stage, steps
        self.rank, self.world = rank, world
        self.features = {name: dict(caches) for name, caches in (features or {}).items()}
        self.weights = {name: weight for name, (_, weight) in sources.items()}
        self._data = [BoundData.open(name, data, preprocess, self.limits) for name, (data, _) in sources.items()]
        self._generator = KeyedGenerator()
        self._mixture = Mixture(self.weights, seed, stage)
        self._modalities = [m for m in self.preprocess if any(m in data.patterns for data in self._data)]
        self._check_features()

    def _check_features(self) -> None:
        for modality in self._modalities:
            binding = [data.name for data in self._data if modality in data.patterns]
            cached = [name for name in binding if modality in self.features.get(name, {})]
            if cached and cached != binding:
                missing = sorted(set(binding) - set(cached))
                raise ValueError(f"{modality!r} has cached features for {cached}, but none for {missing}")

    @property
    def settings(self) -> dict[str, Any]:
        """All that the contents depend on; neither paths, nor ranks, nor the number of steps are among it."""
        return {
            "seed": self.seed,
            "stage": self.stage,
            "batch_size": self.batch_size,
            "limits": asdict(self.limits),
            "weights": self.weights,
            "data": {data.name: data.description for data in self._data},
            "preprocess": {name: p.spec for name, p in self.preprocess.items()},
            "features": {n: {m: cache.digest for m, cache in caches.items()} for n, caches in self.features.items()},
        }

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """This rank's batch of a step.

        Raises:
            OSError: the storage fails; never taken for a fault of the data.
            RuntimeError: too many replacements in a row could not be used.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a stream of {self.steps}")
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        positions = np.arange(first, first + share)
        faults: list[dict[str, Any]] = []
        if step == 0 and self.rank == 0:
            faults = [fault.to_dict() for data in self._data for fault in data.known_faults]
        rows = [self._usable(*place, faults) for place in self._places(positions)]
        return self._batch(rows, faults)

    def _places(self, positions: np.ndarray) -> list[tuple[int, BoundData, int, int]]:
        """(position, data set, epoch, sample) at each position."""
        owners, draws = self._mixture.draw(positions)
        counts = np.array([data.count for data in self._data])[owners]
        epochs, slots = np.divmod(draws, counts)
        samples = np.zeros_like(slots)
        for owner, epoch in sorted(set(zip(owners.tolist(), epochs.tolist(), strict=True))):
            data = self._data[owner]
            here = (owners == owner) & (epochs == epoch)
            samples[here] = permute(slots[here], data.count, self.seed, self.stage, data.name, epoch)
        return [
            (position, self._data[owner], epoch, sample)
            for position, owner, epoch, sample in zip(
                positions.tolist(), owners.tolist(), epochs.tolist(), samples.tolist(), strict=True
            )
        ]

    def _usable(self, position: int, data: BoundData, epoch: int, sample: int, faults: list[dict[str, Any]]) -> _Row:
        error: SampleError | None = None
        for attempt in range(_REPLACEMENTS + 1):
            try:
                return self._row(data, sample, epoch)
            except SampleError as failure:
                error = failure
                faults.append(data.samples.fault(sample, failure, data.name).to_dict())
            sample = keyed_hash(self.seed, self.stage, data.name, "replacement", position, attempt) % data.count
        raise RuntimeError(
            f"data {data.name!r}: {_REPLACEMENTS + 1} samples in a row cannot be used; the last one, "
            f"{faults[-1]['key']!r} in {faults[-1]['shard']}: {faults[-1]['error']} ({faults[-1]['stage']})"
        ) from error

    def _row(self, data: BoundData, index: int, epoch: int) -> _Row:
        if known := self._known(data, index):
            info = next(iter(known.values()))
            row = _Row(data.key(info), data.group(info.group), data)
            for modality, info in known.items():
                if info.variants:
                    _, picked = self._pick(epoch, row.key, modality, len(info.variants))
                    row.values[modality] = self.features[data.name][modality].row(index, picked)
            return row
        sample = data.samples.read(index)
        row = _Row(data.key(sample), data.group(group_of(sample, self.limits)), data)
        for modality, pattern in data.patterns.items():
            variants = variants_in(sample, pattern, self.limits)
            if not variants:
                continue
            generator, picked = self._pick(epoch, row.key, modality, len(variants))
            if (cache := self.features.get(data.name, {}).get(modality)) is not None:
                row.values[modality] = cache.row(index, picked)
            else:
                row.values[modality] = prepare(self.preprocess[modality], variants[picked], self.limits, generator)
        if not row.values:
            raise SampleError(
                f"none of the modalities {list(data.patterns)}; members {sorted(sample.members)}", "select"
            )
        return row

    def _known(self, data: BoundData, index: int) -> dict[str, SampleInfo]:
        """By modality, what the caches hold of a sample; empty unless that is all that a row needs."""
        caches = self.features.get(data.name, {})
        known: dict[str, SampleInfo] = {}
        for modality in data.patterns:
            info = caches[modality].sample(index) if modality in caches else None
            if info is None:
                return {}
            known[modality] = info
        return known if any(info.variants for info in known.values()) else {}

    def _pick(self, epoch: int, key: str, modality: str, variants: int) -> tuple[np.random.Generator, int]:
        """Which of its variants stands for a modality, and the generator for the augmentation that follows."""
        generator = self._generator.at(self.seed, self.stage, epoch, key, modality)
        return generator, int(generator.integers(variants))

    def _batch(self, rows: list[_Row], faults: list[dict[str, Any]]) -> Batch:
        modalities = {}
        for modality in self._modalities:
            values = [row.values.get(modality) for row in rows]
            caches = [caches[modality] for caches in self.features.values() if modality in caches]
            if caches:
                modalities[modality] = collate_features(values, caches[0].width)
            else:
                modalities[modality] = collate(self.preprocess[modality], values)
        return Batch(
            keys=[row.key for row in rows],
            modalities=modalities,
            group=torch.tensor([row.group for row in rows], dtype=torch.int64),
            language=self._flags(rows, "language"),
            replayed=self._flags(rows, "replayed"),
            faults=faults,
        )

    def _flags(self, rows: list[_Row], name: str) -> Tensor | None:
        if not any(getattr(data.data, name) for data in self._data):
            return None
        return torch.tensor([bool(getattr(row.data.data, name)) for row in rows])
