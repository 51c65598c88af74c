"""Random access to the samples of one split: an index in mapped memory, and tars that are read by position."""

import errno
import hashlib
import json
import os
import stat
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.data.config import indexed_splits, refuse_url, suggestion
from mmalign.data.faults import Fault, Limits, SampleError
from mmalign.data.sample import RawSample
from mmalign.data.scan import ENTRY, key_hash
from mmalign.data.tar import TarError, split_name, walk

_RETRY_DELAYS_SECONDS = (0.1, 0.4, 1.6)
_MAX_OPEN_FILES = 64
_VERIFIED_INDEX_BYTES = 1 << 26


class ShardFileError(ValueError):
    """Something stands in place of a tar that is no file: a link, a pipe, a device, a directory."""


@dataclass(frozen=True)
class Shard:
    """One tar, as it was when it was indexed."""

    name: str
    bytes: int
    sha256: str
    samples: int

    def __post_init__(self) -> None:
        name = self.name
        if not name.endswith(".tar") or name.startswith(".") or any(sign in name for sign in "/\\:|\0"):
            raise ValueError(f"the index names a shard {name!r}, which is no plain file name of a tar")


class ShardSet:
    """The samples of one split of a shard directory.

    Safe to send to workers, forked or spawned: each process opens the files itself.

    Attributes:
        shards: the tars.
        faults: what was unusable when the index was made; these samples are not among the indexed ones.
        sha256: hash of the tars' names and hashes: of all that can be read here.
        changed: tars that are not as they were indexed, with their size now, or None where they are missing.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        shards: list[Shard],
        entries: np.ndarray | None,
        qualified: bool = False,
        faults: list[Fault] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.split = split
        self.shards = shards
        self.qualified = qualified
        self.faults = faults or []
        self.limits = limits or Limits()
        names = json.dumps([qualified, *([shard.name, shard.sha256] for shard in shards)])
        self.sha256 = hashlib.sha256(names.encode()).hexdigest()
        self._mapped = entries is None
        self._entries = self._map() if entries is None else entries
        self._sizes = [file_size(self.directory / shard.name) for shard in shards]
        self._files: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def open(cls, directory: Path | str, split: str, limits: Limits | None = None) -> "ShardSet":
        """Open an indexed split.

        Raises:
            FileNotFoundError: no such directory, or it has no index.
            ValueError: no such split, the index is damaged, or a tar is no file of its own but, say, a link.
        """
        refuse_url(directory)
        directory = Path(directory)
        splits = indexed_splits(directory)
        if split not in splits:
            raise ValueError(f"{directory} has no split {split!r}{suggestion(split, splits)}")
        path = directory / "index" / f"{split}.json"
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            if described["version"] != 1:
                raise ValueError(f"version {described['version']} of the format is not known")
            shards = [Shard(**shard) for shard in described["shards"]]
            faults = [Fault(**fault) for fault in described.get("faults", [])]
            samples, digest = int(described["samples"]), described.get("entries_sha256")
            opened = cls(directory, split, shards, None, bool(described.get("qualified")), faults, limits)
            if len(opened) != samples:
                raise ValueError(f"{samples} samples are announced, {len(opened)} are there")
            if digest is not None and opened._entries.nbytes <= _VERIFIED_INDEX_BYTES:
                found = hashlib.sha256(opened._entries.data if samples else b"").hexdigest()
                if found != digest:
                    raise ValueError("the entries differ from their hash")
        except ShardFileError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: {error}; make the index anew with `mmalign data index {directory}`") from error
        return opened

    def _map(self) -> np.ndarray:
        path = self.directory / "index" / f"{self.split}.npy"
        entries = np.load(path, mmap_mode="r", allow_pickle=False)
        if entries.dtype != ENTRY or entries.ndim != 1:
            raise ValueError(f"{path.name} holds {entries.dtype} in {entries.ndim} dimensions, and is no index")
        # A plain view of the same memory: element access through np.memmap is several times slower.
        return np.asarray(entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> np.ndarray:
        """Hashes of the keys [samples], uint64, in mapped memory."""
        return self._entries["key"]

    @property
    def changed(self) -> dict[str, int | None]:
        pairs = zip(self.shards, self._sizes, strict=True)
        return {shard.name: size for shard, size in pairs if size != shard.bytes}

    def read(self, index: int) -> RawSample:
        """Sample number `index`, undecoded.

        Raises:
            SampleError: it is damaged, missing, or beyond the limits.
            OSError: the tar is there and cannot be read, after several attempts; never a reason to go on without it.
        """
        shard, offset, region, crc = self._region(index)
        sample, error = self._parse(shard, offset, region)
        if zlib.crc32(region) != crc:
            raise SampleError("its bytes differ from those that were indexed", "read")
        if error is not None:
            raise SampleError(error, "read")
        return sample

    def fault(self, index: int, error: SampleError, dataset: str = "") -> Fault:
        """The record of a sample that cannot be used."""
        shard_index, _, offset, hashed, _ = self._entries[index].item()
        shard = self.shards[shard_index].name if shard_index < len(self.shards) else ""
        key = f"#{hashed:016x}"
        try:
            _, _, region, _ = self._region(index)
            found = self._parse(self.shards[shard_index], offset, region)[0].key
            key = found if key_hash(found) == hashed else key
        except SampleError:
            pass
        return Fault(shard, key, offset, error.stage, str(error), dataset, self.split)

    def _region(self, index: int) -> tuple[Shard, int, bytes, int]:
        shard_index, length, offset, _, crc = self._entries[index].item()
        if shard_index >= len(self.shards):
            raise SampleError(f"the index names shard number {shard_index} of {len(self.shards)}", "read")
        shard, size = self.shards[shard_index], self._sizes[shard_index]
        if length > self.limits.max_sample_bytes:
            raise SampleError(f"{length} bytes, the limit is {self.limits.max_sample_bytes}", "read")
        if size is None:
            raise SampleError("the shard is missing", "read")
        if offset + length > size:
            raise SampleError(f"the shard is truncated: it has {size} bytes of {shard.bytes}", "read")
        return shard, offset, self._pread(shard_index, offset, length), crc

    def _parse(self, shard: Shard, offset: int, region: bytes) -> tuple[RawSample, str | None]:
        """As much of the sample as can be read, and what is wrong with it."""
        key, members, error = "", {}, None
        try:
            for member in walk(lambda at, size: region[at : at + size], 0, len(region), closed=False):
                names = split_name(member.name)
                if names is None:
                    continue
                if names[0] != (key or names[0]) or names[1] in members:
                    error = f"unexpected member {member.name!r}"
                    break
                key = names[0]
                if member.size > self.limits.max_member_bytes:
                    error = f"{member.name!r} has {member.size} bytes, the limit is {self.limits.max_member_bytes}"
                    continue
                members[names[1]] = region[member.data : member.data + member.size]
        except TarError as damage:
            error = str(damage)
        if not members and error is None:
            error = "no members"
        prefix = f"{shard.name.removesuffix('.tar')}/" if self.qualified else ""
        return RawSample(prefix + key, members, shard.name, offset), error

    def _pread(self, shard_index: int, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. The size was checked before: a failure here is one of the storage, and may pass."""
        path = self.directory / self.shards[shard_index].name
        for delay in (*_RETRY_DELAYS_SECONDS, None):
            try:
                data = os.pread(self._file(shard_index, path), length, offset)
                while 0 < len(data) < length:
                    more = os.pread(self._file(shard_index, path), length - len(data), offset + len(data))
                    data = data + more if more else b""
                if len(data) == length:
                    return data
                failure = OSError(errno.EIO, "the file became shorter while it was read")
            except OSError as error:
                failure = error
            self._close(shard_index)
            if delay is not None:
                time.sleep(delay)
        attempts = len(_RETRY_DELAYS_SECONDS) + 1
        raise OSError(failure.errno, f"cannot read {path} at byte {offset}, {attempts} attempts: {failure.strerror}")

    def _file(self, shard_index: int, path: Path) -> int:
        if shard_index in self._files:
            self._files.move_to_end(shard_index)
            return self._files[shard_index]
        while len(self._files) >= _MAX_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard_index] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        return self._files[shard_index]

    def _close(self, shard_index: int) -> None:
        descriptor = self._files.pop(shard_index, None)
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        for shard_index in list(getattr(self, "_files", ())):
            self._close(shard_index)

    def __getstate__(self) -> dict[str, Any]:
        entries = None if self._mapped else self._entries
        return self.__dict__ | {"_entries": entries, "_files": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._mapped:
            self._entries = self._map()


def file_size(path: Path) -> int | None:
    """Bytes of a tar; None when there is none. The directories that lead there may be links.

    Raises:
        ShardFileError: it is no regular file. A link is none: in a directory of somebody else's, it could stand for any
            file of this machine.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        raise ShardFileError(
            f"{path} is a symbolic link, and only files are read; link its directory, or copy the file"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ShardFileError(f"{path} is no regular file")
    return status.st_size
