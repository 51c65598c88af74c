"""Making the index of a shard directory: what `mmalign data index` does, for our own tars and for those of others."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmalign.data.config import refuse_url, suggestion
from mmalign.data.faults import Fault
from mmalign.data.scan import ENTRY, scan_shard
from mmalign.data.shardset import Shard, ShardSet, file_size

__all__ = ["ShardError", "ShardSet", "SplitIndex", "build_index", "shards_by_split"]

_NUMBERED = re.compile(r"(?P<split>.*[^\d-])-(?P<number>\d+)\.tar")
_MISSING = "the shard is missing; if that is meant, delete the directory's old index first"
_LISTED_FAULTS = 10


class ShardError(ValueError):
    """Tars that cannot be indexed without losing something. `faults` says what and where."""

    def __init__(self, faults: list[Fault]) -> None:
        lines = [f"  {fault}" for fault in faults[:_LISTED_FAULTS]]
        if len(faults) > _LISTED_FAULTS:
            lines.append(f"  … and {len(faults) - _LISTED_FAULTS} more")
        super().__init__("\n".join([f"{len(faults)} places in the shards cannot be used:", *lines]))
        self.faults = faults


@dataclass(frozen=True)
class SplitIndex:
    """What was indexed of one split. `faults` is empty unless damage was tolerated."""

    split: str
    shards: list[Shard]
    samples: int
    qualified: bool
    ignored_members: int
    faults: list[Fault]


def build_index(
    directory: Path | str,
    split: str | None = None,
    tolerate: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, SplitIndex]:
    """Index the tars of a directory, so that their samples can be read by position.

    Tars named `NAME-000000.tar` belong to the split NAME, all others to "train". Where a key occurs in several tars of
    a split, as in some sets of others, all its keys get the tar's name before them: "00017/000003".

    Args:
        split: only this one; None means all.
        tolerate: index what is whole and record the faults in the index, instead of refusing damaged tars.
        progress: called with the name of each tar before it is read.

    Returns:
        What was indexed, by split.

    Raises:
        ShardError: a tar is damaged or missing, and `tolerate` is False; nothing is written for its split.
        FileNotFoundError: no such directory, or no tars in it.
        ValueError: no such split, or a tar is no file of its own but, say, a link.
    """
    directory = Path(directory)
    by_split = shards_by_split(directory)
    if split is not None and split not in by_split:
        raise ValueError(f"{directory} has no split {split!r}{suggestion(split, sorted(by_split))}")
    wanted = by_split if split is None else {split: by_split[split]}
    return {name: _index_split(directory, name, tars, tolerate, progress) for name, tars in wanted.items()}


def shards_by_split(directory: Path) -> dict[str, list[str]]:
    """Names of the tars of every split: those that are there, that an earlier index lists, or that a number misses."""
    refuse_url(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"the shard directory {directory} does not exist")
    names: dict[str, set[str]] = {}
    for path in directory.glob("*.tar"):
        if not path.name.startswith("."):
            match = _NUMBERED.fullmatch(path.name)
            names.setdefault(match["split"] if match else "train", set()).add(path.name)
    for path in directory.glob("index/*.json"):
        try:
            listed = [Shard(**shard).name for shard in json.loads(path.read_text(encoding="utf-8"))["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no index of ours ({error}); delete it first") from error
        names.setdefault(path.stem, set()).update(listed)
    if not names:
        compressed = next((p.name for p in directory.glob("*.tar.*") if not p.name.startswith(".")), None)
        hint = f"; {compressed} must be unpacked, a compressed tar cannot be read by position" if compressed else ""
        raise FileNotFoundError(f"{directory} holds no *.tar{hint}")
    return {split: sorted(found | _gaps(found)) for split, found in sorted(names.items())}


def _gaps(names: set[str]) -> set[str]:
    """Names that are missing in front of or between numbered ones."""
    matches = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    if len(matches) < len(names):
        return set()
    widths = {len(match["number"]) for match in matches}
    last = max(int(match["number"]) for match in matches)
    if len(widths) > 1 or last >= 10 * len(names) + 10:
        return set()
    prefix, width = matches[0]["split"], widths.pop()
    return {f"{prefix}-{number:0{width}d}.tar" for number in range(last + 1)} - names


def _index_split(
    directory: Path, split: str, names: list[str], tolerate: bool, progress: Callable[[str], None] | None
) -> SplitIndex:
    shards: list[Shard] = []
    faults: list[Fault] = []
    qualified_keys: list[np.ndarray] = []
    ignored = 0
    folder = directory / "index"
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{split}.npy.tmp"
    try:
        with open(temporary, "w+b") as file:
            _write_header(file, 0)
            for name in names:
                if file_size(directory / name) is None:
                    faults.append(Fault(name, "", 0, "index", _MISSING, split=split))
                    continue
                if progress is not None:
                    progress(name)
                scan = scan_shard(directory / name, split)
                scan.entries["shard"] = len(shards)
                file.write(scan.entries.tobytes())
                shards.append(Shard(name, scan.bytes, scan.sha256, len(scan.entries)))
                faults += scan.faults
                qualified_keys.append(scan.qualified)
                ignored += scan.ignored
            samples = sum(shard.samples for shard in shards)
            if faults and not tolerate:
                raise ShardError(faults)
            file.seek(0)
            _write_header(file, samples)
        qualified = _qualify(temporary, samples, qualified_keys)
        index = SplitIndex(split, shards, samples, qualified, ignored, faults)
        _publish(folder, temporary, index)
    finally:
        temporary.unlink(missing_ok=True)
    return index


def _write_header(file: BinaryIO, samples: int) -> None:
    # numpy pads the header so that a later, larger number of rows fits into the same place.
    description = {"descr": np.lib.format.dtype_to_descr(ENTRY), "fortran_order": False, "shape": (samples,)}
    np.lib.format.write_array_header_1_0(file, description)


def _qualify(path: Path, samples: int, qualified_keys: list[np.ndarray]) -> bool:
    """Make the keys unique over the tars, where they are not; True when that was needed."""
    if samples == 0:
        return False
    entries = np.load(path, mmap_mode="r+", allow_pickle=False)
    keys = np.sort(entries["key"])
    repeated = bool((keys[1:] == keys[:-1]).any())
    if repeated:
        entries["key"] = np.concatenate(qualified_keys)
        entries.flush()
    return repeated


def _publish(folder: Path, temporary: Path, index: SplitIndex) -> None:
    """Put both files in place, the description last: each is either the old or the new one, never half of one."""
    entries = np.load(temporary, mmap_mode="r", allow_pickle=False) if index.samples else np.zeros(0, ENTRY)
    described: dict[str, Any] = {
        "version": 1,
        "split": index.split,
        "samples": index.samples,
        "qualified": index.qualified,
        "ignored_members": index.ignored_members,
        "entries_sha256": hashlib.sha256(entries.data if entries.size else b"").hexdigest(),
        "shards": [asdict(shard) for shard in index.shards],
        "faults": [fault.to_dict() for fault in index.faults],
    }
    text = folder / f".{index.split}.json.tmp"
    text.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    for path, name in ((temporary, f"{index.split}.npy"), (text, f"{index.split}.json")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(path, folder / name)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
