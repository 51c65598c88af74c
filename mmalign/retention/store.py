"""The samples of a memory: who they are, where they are read, and what they take on disk."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmalign.data.decode import EXTENSIONS
from mmalign.data.faults import Limits, SampleError
from mmalign.data.index import ShardSet
from mmalign.data.sample import DEFAULT_MEMBERS, RawSample
from mmalign.data.scan import ENTRY as INDEX_ENTRY
from mmalign.data.scan import key_hash
from mmalign.data.shards import valid_extension
from mmalign.data.tar import BLOCK, padded
from mmalign.model import Aligner
from mmalign.retention.base import preprocess_of

SPLIT = "memory"
SAMPLES_PER_SHARD = 1000
_TAR_RECORD_BYTES = 10240
_INDEX_BYTES = 2048
_INDEX_BYTES_PER_SHARD = 256
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}")
_PLAIN_EXTENSION_BYTES = 59  # of the 100 that a name takes in a tar, a key and its dot take up to 41
_RENAMED = "renamed"
_DECODED = {extension for extensions in EXTENSIONS.values() for extension in extensions}


def sample_hash(seed: int, data_identity: str, key: str) -> int:
    """A sample's identity and its priority in every memory of a run: a keyed hash of its data set and its key."""
    text = f"{data_identity}/{key}".encode()
    digest = hashlib.blake2b(text, digest_size=8, key=f"memory/{seed}".encode()).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class Origin:
    """Where the samples of one part of a memory come from: a split of a shard directory, and the modalities read there.

    Attributes:
        directory: name of the part's folder within a memory.
        shards, split: where its samples lie now.
        modalities: the members that stand for each modality.
    """

    directory: str
    shards: Path
    split: str
    modalities: dict[str, str]


class Reader:
    """Reads samples of one origin by the hashes of their keys.

    Members that no modality reads are left behind; the json stays.

    Args:
        wanted: these hashes.
        limits: those under which the samples were chosen.
    """

    def __init__(self, origin: Origin, wanted: np.ndarray, limits: Limits) -> None:
        self.origin = origin
        self.shards = ShardSet.open(origin.shards, origin.split, limits)
        positions = np.flatnonzero(np.isin(self.shards.keys, wanted))
        self._position = dict(zip(self.shards.keys[positions].tolist(), positions.tolist(), strict=True))

    def read(self, hashed_key: int) -> RawSample:
        """One sample, undecoded, with the members that its modalities use.

        Raises:
            ValueError: it cannot be found or read; names the directory.
        """
        try:
            sample = self.shards.read(self._position[hashed_key])
            used = {variant.name for pattern in self.origin.modalities.values() for variant in sample.variants(pattern)}
        except (KeyError, SampleError, ValueError) as error:
            raise ValueError(
                f"{self.origin.shards}: sample #{hashed_key:016x}, which the memory chose, cannot be read: {error}"
            ) from error
        members = {name: data for name, data in sample.members.items() if name in used or name == "json"}
        return replace(sample, members=members or sample.members)


def modalities_of(model: Aligner, modalities: dict[str, str] | None) -> dict[str, str]:
    """The members that a data set's modalities read; None stands for every encoder's own default."""
    if modalities is not None:
        return dict(modalities)
    return {name: DEFAULT_MEMBERS[preprocess.kind] for name, preprocess in preprocess_of(model).items()}


def split_key(key: str, names: Iterable[str]) -> tuple[str, str]:
    """A batch's key "DATASET/KEY" -> (data set, key), which may both hold slashes; ("", …) for one of no such set."""
    name = next((name for name in names if key.startswith(f"{name}/")), "")
    return name, key.removeprefix(f"{name}/")


def stored_modalities(modalities: dict[str, str]) -> dict[str, str]:
    """Patterns that find the members of stored samples, also under new names (see stored_members)."""
    return {name: f"{pattern}|{_RENAMED}*@{i}@*" for i, (name, pattern) in enumerate(sorted(modalities.items()))}


def stored_members(sample: RawSample, modalities: dict[str, str]) -> dict[str, bytes]:
    """The sample's members under names that a tar of ours can hold, in their order.

    A name that it cannot is replaced by its hash, behind the numbers of the modalities that read the member, and before
    its last part, which says how it is decoded.

    Args:
        modalities: those of the sample's origin.
    """
    read = [{v.name for v in sample.variants(pattern)} for _, pattern in sorted(modalities.items())]
    members = {}
    for name, data in sample.members.items():
        if not valid_extension(name) or len(name) > _PLAIN_EXTENSION_BYTES:
            numbers = "".join(f"{i}@" for i, names in enumerate(read) if name in names)
            digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
            suffix = name.rpartition(".")[2].lower()
            name = f"{_RENAMED}@{numbers}.{digest}.{suffix if suffix in _DECODED else 'bin'}"
        members[name] = data
    return members


def stored_key(sample: RawSample, hashed: int) -> str:
    """The sample's own key where a tar of ours can hold it, otherwise its hash."""
    return sample.key if _PLAIN_KEY.fullmatch(sample.key) else f"{hashed:016x}"


def tar_bytes(sample: RawSample) -> int:
    """What the sample takes in a tar."""
    return sum(BLOCK + padded(len(data)) for data in sample.members.values())


class Budget:
    """Adds up what parts of a memory take on disk, tars and indices, and says when that is too much.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._parts: dict[str, list[int]] = {}

    def take(self, part: str, size: int) -> bool:
        """Count one more sample of `size` bytes in its tar; False, and nothing is counted, if it does not fit."""
        sizes = self._parts.get(part, [])
        started = sizes[-(len(sizes) % SAMPLES_PER_SHARD) :] if len(sizes) % SAMPLES_PER_SHARD else []
        before = _file_bytes(sum(started)) if started else 0
        more = _file_bytes(sum(started) + size) - before + INDEX_ENTRY.itemsize
        more += (0 if started else _INDEX_BYTES_PER_SHARD) + (0 if sizes else _INDEX_BYTES)
        if self.taken + more > self.limit:
            return False
        self.taken += more
        self._parts.setdefault(part, []).append(size)
        return True


def _file_bytes(content: int) -> int:
    """A tar's size: its content and two zero blocks, padded to whole records."""
    return -(-(content + 2 * BLOCK) // _TAR_RECORD_BYTES) * _TAR_RECORD_BYTES


def written_hash(sample: RawSample, hashed: int) -> int:
    """How the index of the memory will call the sample."""
    return key_hash(stored_key(sample, hashed))
