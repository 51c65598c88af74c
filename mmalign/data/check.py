"""Finding every fault of a shard directory beforehand: what `mmalign data check` does."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from mmalign.data.config import indexed_splits
from mmalign.data.decode import EXTENSIONS, decode
from mmalign.data.faults import Fault, Limits, SampleError
from mmalign.data.index import shards_by_split
from mmalign.data.sample import RawSample
from mmalign.data.scan import ENTRY, ShardScan, scan_shard
from mmalign.data.select import has_captions, variants_in
from mmalign.data.shardset import Shard, ShardSet

_KINDS = {extension: kind for kind, extensions in EXTENSIONS.items() for extension in extensions}


def check(
    directory: Path | str,
    limits: Limits | None = None,
    required: Iterable[str] = (),
    progress: Callable[[str], None] | None = None,
) -> list[Fault]:
    """Everything in a shard directory that a run would quarantine: damaged tars, samples, members; in order.

    Every member with a known extension is decoded, recordings as a whole (a step may read less), and every caption in a
    json member. Members with other extensions are the data set's own and are left alone.

    Args:
        required: patterns of members (see RawSample.variants); a sample that has none of one of them is a fault.
        progress: called with the name of each split.

    Raises:
        FileNotFoundError: no such directory, or no shards in it.
        OSError: a tar is there and cannot be read.
    """
    directory = Path(directory)
    limits = limits or Limits()
    required = list(required)
    faults: list[Fault] = []
    shards = shards_by_split(directory)
    indexed = indexed_splits(directory) if (directory / "index").is_dir() else []
    for split, names in shards.items():
        if progress is not None:
            progress(split)
        if split in indexed:
            samples = ShardSet.open(directory, split, limits)
            faults += samples.faults + _changes(samples)
            known = {shard.name for shard in samples.shards} | {fault.shard for fault in samples.faults}
            faults += [
                Fault(n, "", 0, "index", "the shard is not indexed", split=split) for n in names if n not in known
            ]
        else:
            samples, found = _unindexed(directory, split, names, limits)
            faults += found
        for index in range(len(samples)):
            try:
                check_sample(samples.read(index), limits, required)
            except SampleError as error:
                faults.append(samples.fault(index, error))
    return faults


def check_sample(sample: RawSample, limits: Limits, required: Iterable[str] = ()) -> None:
    """Decode all that can be decoded.

    Raises:
        SampleError: of the first member that cannot be.
    """
    found = False
    for name, data in sample.members.items():
        kind = _KINDS.get(name.rpartition(".")[2].lower())
        if kind is not None:
            decode(kind, name, data, limits)
            found = True
    if has_captions(sample, limits):
        for variant in variants_in(sample, "captions[*]", limits):
            decode("text", variant.name, variant.data, limits)
            found = True
    for pattern in required:
        if not variants_in(sample, pattern, limits):
            raise SampleError(f"no member {pattern!r}", "select")
    if not found:
        raise SampleError(f"nothing in it can be decoded: {sorted(sample.members)}", "select")


def _unindexed(directory: Path, split: str, names: list[str], limits: Limits) -> tuple[ShardSet, list[Fault]]:
    """The samples of tars without an index, and the damage that indexing them would refuse."""
    shards: list[Shard] = []
    scans: list[ShardScan] = []
    faults: list[Fault] = []
    for name in names:
        if not (directory / name).exists():
            faults.append(Fault(name, "", 0, "index", "the shard is missing", split=split))
            continue
        scan = scan_shard(directory / name, split)
        scan.entries["shard"] = len(shards)
        shards.append(Shard(name, scan.bytes, scan.sha256, len(scan.entries)))
        scans.append(scan)
        faults += scan.faults
    entries = np.concatenate([scan.entries for scan in scans]) if scans else np.zeros(0, ENTRY)
    return ShardSet(directory, split, shards, entries, limits=limits), faults


def _changes(samples: ShardSet) -> list[Fault]:
    """Tars that are not those that were indexed; which samples this costs, reading them shows."""
    faults = []
    for shard in samples.shards:
        path = samples.directory / shard.name
        if shard.name in samples.changed and samples.changed[shard.name] is None:
            error = f"the shard is missing, with {shard.samples} samples"
        else:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256:
                    continue
            now = path.stat().st_size
            difference = "its bytes differ" if now == shard.bytes else f"{now} bytes, then {shard.bytes}"
            error = f"the shard is not the one that was indexed: {difference}"
        faults.append(Fault(shard.name, "", 0, "index", error, split=samples.split))
    return faults
