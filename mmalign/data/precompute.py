"""Making the feature cache of a frozen tower."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mmalign.batch import Values
from mmalign.data.bound import BoundData
from mmalign.data.config import ShardData
from mmalign.data.faults import Limits
from mmalign.data.features import FeatureCache
from mmalign.data.variants import VariantBlocks, VariantInfo
from mmalign.data.workers import ordered
from mmalign.encoders.base import Encoder

_VERSION = 1
_PART_SAMPLES = 1024


def open_or_build(
    data: ShardData,
    modality: str,
    tower: Encoder,
    tower_hash: str | None = None,
    limits: Limits | None = None,
    directory: Path | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> FeatureCache:
    """The cached outputs of a tower for one modality of a data set, computed now where they are not there yet.

    They are computed as in evaluation: no augmentation, the tower in eval mode. An interrupted build goes on where it
    stopped, in parts of 1,024 samples.

    Args:
        tower_hash: of its weights; None computes it.
        directory: of all caches; None means SHARDS/features.
    """
    limits = limits or Limits()
    bound = BoundData.for_modality(data.split, data, modality, tower.preprocess, limits)
    depends = {
        "version": _VERSION,
        "tower": tower_hash or weights_hash(tower),
        "spec": tower.spec,
        "members": bound.patterns[modality],
        "shards": bound.samples.sha256,
        "changed": bound.samples.changed,
        "split": data.split,
        "samples": bound.count,
        "limits": asdict(limits),
    }
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]
    directory = Path(data.shards) / "features" if directory is None else Path(directory)
    if (found := FeatureCache.find(directory, digest)) is not None:
        return found
    folder = directory / digest
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / f".{digest}.lock"):  # runs side by side build one cache once: the others wait here
        if (found := FeatureCache.find(directory, digest)) is not None:
            return found
        parts = [folder / f"part-{start:010d}.npz" for start in range(0, bound.count, _PART_SAMPLES)]
        _compute(bound, modality, tower, limits, parts, batch_size, num_workers, progress)
        _merge(folder, parts, tower.width)
        described = json.dumps(depends | {"digest": digest, "width": tower.width}).encode()
        _write(folder / "cache.json", lambda file: file.write(described))
        for part in parts:
            part.unlink(missing_ok=True)
    return FeatureCache(folder)


def weights_hash(tower: Encoder) -> str:
    """SHA-256 over the names, types and values of all parameters and buffers, and over the tower's class."""
    digest = hashlib.sha256(f"{type(tower).__module__}.{type(tower).__qualname__}".encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _compute(
    bound: BoundData,
    modality: str,
    tower: Encoder,
    limits: Limits,
    parts: list[Path],
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> None:
    from tqdm import tqdm

    if _PART_SAMPLES % batch_size:
        raise ValueError(f"batch_size {batch_size} does not divide {_PART_SAMPLES}")
    missing = [i for i, part in enumerate(parts) if not part.exists()]
    blocks = VariantBlocks(bound, modality, tower.preprocess, batch_size, limits)
    per_part = _PART_SAMPLES // batch_size
    wanted = [b for i in missing for b in range(i * per_part, min((i + 1) * per_part, len(blocks)))]
    modes = {module: module.training for module in tower.modules()}
    tower.eval()
    try:
        results = ordered(blocks, wanted, num_workers)
        bar = tqdm(total=len(wanted) * batch_size, desc=f"features of {modality}", unit="sample", disable=not progress)
        with torch.inference_mode(), bar:
            for i in missing:
                stop = min((i + 1) * _PART_SAMPLES, bound.count)
                rows: list[tuple[VariantInfo, np.ndarray]] = []
                for _ in range(i * per_part, min((i + 1) * per_part, len(blocks))):
                    for values, infos in next(results).batches:
                        rows += zip(infos, _pooled(tower, values).numpy(), strict=True)
                    bar.update(batch_size)
                _save_part(parts[i], rows, i * _PART_SAMPLES, stop, tower.width)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _pooled(tower: Encoder, values: Values) -> Tensor:
    device = next((t.device for t in chain(tower.parameters(), tower.buffers())), torch.device("cpu"))
    values = values.to(device)
    assert values.values is not None
    return tower(values.values, values.mask).pooled.float().cpu()


def _save_part(path: Path, rows: list[tuple[VariantInfo, np.ndarray]], start: int, stop: int, width: int) -> None:
    """Variants that could not be used leave a row of NaN where later ones of the sample could."""
    counts = np.zeros(stop - start, dtype=np.int64)
    for info, _ in rows:
        counts[info.sample - start] = max(counts[info.sample - start], info.number + 1)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    features = np.full((int(firsts[-1]), width), np.nan, dtype=np.float32)
    for info, row in rows:
        features[firsts[info.sample - start] + info.number] = row
    _write(path, lambda file: np.savez(file, counts=counts, features=features))


def _merge(folder: Path, parts: list[Path], width: int) -> None:
    counts = [_load(part, "counts") for part in parts]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)

    def write_features(file: BinaryIO) -> None:
        description = {"descr": "<f4", "fortran_order": False, "shape": (int(offsets[-1]), width)}
        np.lib.format.write_array_header_1_0(file, description)
        for part in parts:
            file.write(_load(part, "features").tobytes())

    _write(folder / "features.npy", write_features)
    _write(folder / "offsets.npy", lambda file: np.save(file, offsets))


def _load(part: Path, name: str) -> np.ndarray:
    with np.load(part, allow_pickle=False) as arrays:
        return arrays[name]


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """All of a file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
