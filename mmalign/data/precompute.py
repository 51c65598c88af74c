"""Making the feature cache of a frozen tower."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mmalign.batch import Values
from mmalign.data.bound import BoundData
from mmalign.data.config import ShardData
from mmalign.data.faults import Limits, SampleError
from mmalign.data.features import FeatureCache
from mmalign.data.sample import SampleInfo
from mmalign.data.variants import VariantBlocks, VariantInfo
from mmalign.data.workers import ordered, worth_starting
from mmalign.encoders.base import Encoder

_VERSION = 3
_PART_SAMPLES = 1024
_CHECKED_SAMPLES = 4
_TOLERANCE = 0.01
"""Relative distance from what was computed by another device or number of threads."""


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
    stopped, in parts of 1,024 samples. A cache belongs to the tower's class, settings and weights; of one that is found
    some samples are computed again, because code and libraries can change as well.

    Args:
        tower_hash: of its weights; None computes it.
        directory: of all caches; None means SHARDS/features.
        batch_size: samples that the tower sees at a time; a power of two, or the next one below is taken.
        num_workers: processes that read and decode, at most: few samples are read in this one.

    Raises:
        ValueError: the cache that is there does not hold what the tower computes; names its folder.
    """
    limits = limits or Limits()
    bound = BoundData.for_modality(data.split, data, modality, tower.preprocess, limits)
    depends = {
        "version": _VERSION,
        "tower": tower_hash or weights_hash(tower),
        "spec": tower.spec,
        "settings": _settings(tower),
        "members": bound.patterns[modality],
        "shards": bound.samples.sha256,
        "changed": bound.samples.changed,
        "split": data.split,
        "samples": bound.count,
        "limits": asdict(limits),
    }
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]
    directory = Path(data.shards) / "features" if directory is None else Path(directory)
    folder = directory / digest
    if (found := FeatureCache.find(directory, digest)) is not None:
        _check(found, bound, modality, tower, limits)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / f".{digest}.lock"):  # runs side by side build one cache once: the others wait here
        if (found := FeatureCache.find(directory, digest)) is not None:
            return found
        parts = [folder / f"part-{start:010d}.npz" for start in range(0, bound.count, _PART_SAMPLES)]
        _compute(bound, modality, tower, limits, parts, batch_size, num_workers, progress)
        kinds = _merge(folder, parts, tower.width)
        described = json.dumps(depends | {"digest": digest, "width": tower.width, "variants": kinds}).encode()
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


def _settings(tower: Encoder) -> dict[str, Any]:
    """What a tower computes with besides its weights: its constructor's arguments, and Hugging Face configurations.

    A folder of a model may hold another configuration than it did. Where it lies and which version of the library read
    it changes nothing.
    """
    held: list[Any] = [getattr(module, "config", None) for module in tower.modules()]
    configs = {id(config): config for config in held if hasattr(config, "to_json_string")}
    described = [json.loads(config.to_json_string(use_diff=False)) for config in configs.values()]
    ignored = ("_name_or_path", "transformers_version")
    return {
        "init_args": tower.init_args,
        "configs": [{key: value for key, value in config.items() if key not in ignored} for config in described],
    }


def _check(cache: FeatureCache, bound: BoundData, modality: str, tower: Encoder, limits: Limits) -> None:
    """Raise a ValueError unless the rows of some samples are what the tower computes now."""
    samples = VariantBlocks(bound, modality, tower.preprocess, 1, limits)
    with _evaluating(tower):
        for index in sorted({i * (bound.count - 1) // (_CHECKED_SAMPLES - 1) for i in range(_CHECKED_SAMPLES)}):
            for values, (info,) in samples[index].batches[:1]:
                try:
                    cached = cache.row(index, info.number)
                except SampleError:  # it could not be used when the cache was made
                    continue
                distance = float((_pooled(tower, values)[0] - cached).norm() / cached.norm().clamp(min=1e-12))
                if not distance <= _TOLERANCE:
                    raise ValueError(
                        f"{cache.directory} does not hold what the {modality} tower computes: for {info.key} it is "
                        f"{distance:.0%} off; the tower's code or a library has changed. Delete it to compute it anew"
                    )


@contextmanager
def _evaluating(tower: Encoder) -> Iterator[None]:
    modes = {module: module.training for module in tower.modules()}
    try:
        with torch.inference_mode():
            tower.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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

    batch_size = min(1 << (batch_size.bit_length() - 1), _PART_SAMPLES)  # so that a batch ends where a part ends
    missing = [i for i, part in enumerate(parts) if not part.exists()]
    blocks = VariantBlocks(bound, modality, tower.preprocess, batch_size, limits)
    per_part = _PART_SAMPLES // batch_size
    wanted = [b for i in missing for b in range(i * per_part, min((i + 1) * per_part, len(blocks)))]
    results = ordered(blocks, wanted, worth_starting(num_workers, len(wanted) * batch_size))
    bar = tqdm(total=len(wanted) * batch_size, desc=f"features of {modality}", unit="sample", disable=not progress)
    with _evaluating(tower), bar:
        for i in missing:
            stop = min((i + 1) * _PART_SAMPLES, bound.count)
            rows: list[tuple[VariantInfo, np.ndarray]] = []
            samples: dict[int, SampleInfo] = {}
            for _ in range(i * per_part, min((i + 1) * per_part, len(blocks))):
                block = next(results)
                for values, infos in block.batches:
                    rows += zip(infos, _pooled(tower, values).numpy(), strict=True)
                samples |= block.samples
                bar.update(batch_size)
            _save_part(parts[i], rows, samples, i * _PART_SAMPLES, stop, tower.width)


def _pooled(tower: Encoder, values: Values) -> Tensor:
    device = next((t.device for t in chain(tower.parameters(), tower.buffers())), torch.device("cpu"))
    values = values.to(device)
    assert values.values is not None
    return tower(tower.in_its_precision(values.values), values.mask).pooled.float().cpu()


def _save_part(
    path: Path,
    rows: list[tuple[VariantInfo, np.ndarray]],
    samples: dict[int, SampleInfo],
    start: int,
    stop: int,
    width: int,
) -> None:
    """Variants that could not be used leave a row of NaN; samples that could not be read have none."""
    infos = [samples.get(index) for index in range(start, stop)]
    firsts = np.cumsum([0, *(len(info.variants) if info is not None else 0 for info in infos)])
    features = np.full((int(firsts[-1]), width), np.nan, dtype=np.float32)
    for info, row in rows:
        features[firsts[info.sample - start] + info.number] = row
    described = json.dumps([None if info is None else asdict(info) for info in infos]).encode()
    _write(path, lambda file: np.savez(file, features=features, samples=np.frombuffer(described, np.uint8)))


def _merge(folder: Path, parts: list[Path], width: int) -> list[tuple[str, str]]:
    """Write the arrays of a FeatureCache; returns the kinds of variants that they refer to by number."""
    kinds: dict[tuple[str, str], int] = {}
    sizes, variants = [np.zeros((2, 1), dtype=np.int64)], [np.zeros(0, dtype=np.int32)]
    for part in parts:
        infos = _infos(part)
        numbers = [[] if i is None else [kinds.setdefault(kind, len(kinds)) for kind in i.variants] for i in infos]
        sizes.append(np.array([[len(some) for some in numbers], [len(_text(info)) for info in infos]]))
        variants.append(np.array([number for some in numbers for number in some], dtype=np.int32))
    offsets = np.cumsum(np.concatenate(sizes, axis=1), axis=1)

    def write_features(file: BinaryIO) -> None:
        description = {"descr": "<f4", "fortran_order": False, "shape": (int(offsets[0, -1]), width)}
        np.lib.format.write_array_header_1_0(file, description)
        for part in parts:
            file.write(_load(part, "features").tobytes())

    def write_samples(file: BinaryIO) -> None:
        description = {"descr": "|u1", "fortran_order": False, "shape": (int(offsets[1, -1]),)}
        np.lib.format.write_array_header_1_0(file, description)
        for part in parts:
            file.write(b"".join(map(_text, _infos(part))))

    _write(folder / "features.npy", write_features)
    _write(folder / "samples.npy", write_samples)
    _write(folder / "variants.npy", lambda file: np.save(file, np.concatenate(variants)))
    _write(folder / "offsets.npy", lambda file: np.save(file, offsets))
    return list(kinds)


def _text(info: SampleInfo | None) -> bytes:
    """As FeatureCache.sample reads it."""
    return b"" if info is None else f"{info.key}\0{info.group}".encode("utf-8", "surrogatepass")


def _infos(part: Path) -> list[SampleInfo | None]:
    described = json.loads(_load(part, "samples").tobytes())
    return [
        None if info is None else SampleInfo(info["key"], info["group"], [(n, c) for n, c in info["variants"]])
        for info in described
    ]


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
