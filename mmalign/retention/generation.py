"""A memory on disk: samples as they stood in the shards, in tars of their own with an index, anew after each stage."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from mmalign.data.faults import Limits
from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.retention.store import (
    SAMPLES_PER_SHARD,
    SPLIT,
    Budget,
    Origin,
    Reader,
    stored_key,
    stored_members,
    tar_bytes,
    written_hash,
)

Place = tuple[int, int]
"""(stage, source)"""


def copy_samples(
    entries: np.ndarray,
    order: np.ndarray,
    origins: dict[Place, Origin],
    budget: Budget,
    target: Path,
    limits: Limits,
) -> tuple[np.ndarray, np.ndarray]:
    """Write what fits the budget below `target`.

    Args:
        entries: ENTRY, [entries]; `key` finds each in the shards of its origin.
        order: their indices, the one that stays longest first.
        origins: where the samples of each stage and source lie.
        limits: what counts as an unusable sample.

    Returns:
        Which entries were written [entries], and the hashes of all keys, new for those that were [entries].

    Raises:
        ValueError: a sample cannot be read.
    """
    places = [(stage, source) for stage, source in entries[["stage", "source"]].tolist()]
    readers = {place: Reader(origin, entries["key"][_at(entries, place)], limits) for place, origin in origins.items()}
    fits = np.zeros(len(entries), bool)
    keys = entries["key"].copy()
    for i in order.tolist():
        sample = readers[places[i]].read(entries["key"][i].item())
        if not budget.take(origins[places[i]].directory, tar_bytes(sample)):
            break  # and not the next one that fits: that would prefer small samples
        fits[i], keys[i] = True, written_hash(sample, entries["hash"][i].item())

    def samples(place: Place) -> Iterator[RawSample]:
        for i in np.flatnonzero(fits & _at(entries, place)).tolist():
            sample = readers[place].read(entries["key"][i].item())
            members = stored_members(sample, origins[place].modalities)
            yield RawSample(stored_key(sample, entries["hash"][i].item()), members)

    kept = sorted({places[i] for i in np.flatnonzero(fits).tolist()})
    _write(target, {origins[place].directory: partial(samples, place) for place in kept})
    return fits, keys


def _at(entries: np.ndarray, place: Place) -> np.ndarray:
    here: np.ndarray = (entries["stage"] == place[0]) & (entries["source"] == place[1])
    return here


def _write(target: Path, parts: Mapping[str, Callable[[], Iterable[RawSample]]]) -> None:
    """Write all parts below `target`, which appears when all of it is complete and on disk.

    What an interrupted attempt left behind is replaced; as content follows from state and data alone, that changes
    nothing that was complete.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, samples in parts.items():
            write_shards(temporary / name, SPLIT, samples(), SAMPLES_PER_SHARD)
            build_index(temporary / name)
        _sync(temporary)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_generations(folder: Path, before: int) -> None:
    """Delete the generations of stages before `before`, and what an interrupted attempt left."""
    for path in folder.glob("after-*"):
        if path.name.removeprefix("after-").isdigit() and int(path.name.removeprefix("after-")) < before:
            shutil.rmtree(path)
    for path in folder.glob(".after-*.tmp"):
        shutil.rmtree(path)


def directory_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
