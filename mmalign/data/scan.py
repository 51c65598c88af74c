"""Finding the samples of one tar, and every place in it that is damaged."""

import hashlib
import os
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmalign.data.faults import Fault
from mmalign.data.tar import BLOCK, Member, Read, TarError, end_of_content, find_header, split_name, walk

ENTRY = np.dtype([("shard", "<u4"), ("length", "<u4"), ("offset", "<u8"), ("key", "<u8"), ("crc", "<u4")])
"""One sample of an index: its members lie in the bytes [offset, offset + length) of a tar, headers included.

`key` is the start of the key's BLAKE2b hash, `crc` the CRC-32 of those bytes: it finds every sample that was damaged
later, also where its format would not notice."""

_CHUNK = 1 << 20


def key_hash(key: str) -> int:
    """The first 8 bytes of the key's BLAKE2b hash, little endian."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest(), "little")


@dataclass
class ShardScan:
    """What one tar holds.

    Attributes:
        entries: the usable samples; `shard` is 0.
        qualified: hashes of the keys with the tar's name before them, "train-000000/KEY".
        faults: everything that cannot be used.
        ignored: regular members that belong to no sample by WebDataset's naming rule.
    """

    bytes: int
    sha256: str
    entries: np.ndarray
    qualified: np.ndarray
    faults: list[Fault]
    ignored: int


@dataclass
class _Group:
    """Consecutive members with one key."""

    key: str
    start: int
    end: int
    extensions: set[str] = field(default_factory=set)
    damage: TarError | None = None


def scan_shard(path: Path, split: str = "") -> ShardScan:
    """Read one tar from start to end.

    After damage the walk goes on at the next valid header, and what may have lost a member is a fault: a sample is
    either complete or not there.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=_open) as file:
        size = os.fstat(file.fileno()).st_size
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()

        def read(offset: int, count: int) -> bytes:
            return os.pread(file.fileno(), count, offset)

        groups, lost, ignored = _groups(read, size)
        faults = [Fault(path.name, key, error.offset, "index", str(error), split=split) for key, error in lost]
        counts = Counter(group.key for group in groups)
        good = []
        for group in groups:
            if counts[group.key] > 1:
                group.damage = TarError("the key occurs twice, or its members do not lie together", group.start)
            elif group.end - group.start >= 2**32:
                group.damage = TarError("a sample of 4 GiB or more", group.start)
            if group.damage:
                offset = group.damage.offset
                faults.append(Fault(path.name, group.key, offset, "index", str(group.damage), split=split))
            else:
                good.append(group)
        rows = [(0, g.end - g.start, g.start, key_hash(g.key), _crc(read, g.start, g.end)) for g in good]
    entries = np.array(rows, ENTRY)
    qualified = np.array([key_hash(f"{path.stem}/{group.key}") for group in good], np.uint64)
    faults.sort(key=lambda fault: fault.offset)
    return ShardScan(size, sha256, entries, qualified, faults, ignored)


def _crc(read: Read, start: int, end: int) -> int:
    crc = 0
    for at in range(start, end, _CHUNK):
        crc = zlib.crc32(read(at, min(_CHUNK, end - at)), crc)
    return crc


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO that somebody named *.tar would wait for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _groups(read: Read, size: int) -> tuple[list[_Group], list[tuple[str, TarError]], int]:
    """Samples, damage that belongs to none of them as (key, error), and the number of ignored members."""
    groups: list[_Group] = []
    lost: list[tuple[str, TarError]] = []
    pending: list[TarError] = []
    ignored = position = 0
    tail = end_of_content(read, size)
    if size == 0:
        return [], [("", TarError("the file is empty (0 bytes)", 0))], 0
    while True:
        try:
            for member in walk(read, position, size):
                if (names := split_name(member.name)) is None:
                    ignored += 1
                    continue
                before = groups[-1] if groups else None
                _add(groups, member, *names)
                lost += _blame(pending, before, groups[-1])
                pending = []
            break
        except TarError as error:
            pending.append(error)
            following = error.resume
            if following is None or following > size:
                following = find_header(read, error.offset + BLOCK, tail)
            if following is None and tail < size and error.offset < tail:
                following = tail
            if following is None:
                break
            position = following
    lost += _blame(pending, groups[-1] if groups else None, None)
    return groups, lost, ignored


def _add(groups: list[_Group], member: Member, key: str, extension: str) -> None:
    if not groups or groups[-1].key != key:
        groups.append(_Group(key, member.start, member.end))
    group = groups[-1]
    if extension in group.extensions:
        group.damage = TarError(f"two members {extension!r} in one sample", member.start)
    group.extensions.add(extension)
    group.end = member.end


def _blame(errors: list[TarError], before: _Group | None, after: _Group | None) -> list[tuple[str, TarError]]:
    """Mark the samples around damage that may have lost a member by it; return the damage that hit neither."""
    elsewhere = []
    neighbours = [group for group in (before, after) if group is not None]
    for error in errors:
        names = split_name(error.name)
        suspects = [group for group in neighbours if names and group.key == names[0]]
        if not suspects and not error.certain:
            # The damaged header does not say whose member it was.
            suspects = neighbours
        for group in suspects:
            group.damage = group.damage or error
        if not suspects:
            elsewhere.append((names[0] if names else "", error))
    return elsewhere
