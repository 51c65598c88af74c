"""Writing shards: plain WebDataset tars whose bytes depend on the samples alone."""

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from mmalign.data.sample import RawSample
from mmalign.data.sources.base import Source

# A key becomes the part of a member's name before its first dot. It never becomes a path, and still nothing that could
# be one is let in, because other people's tools may extract the tars.
_KEY = re.compile(r"[^\W]([\w +,@=~()-]*[\w)+-])?")
_EXTENSION = re.compile(r"[A-Za-z0-9_@-]+(\.[A-Za-z0-9_@-]+)*")
_SPLIT = re.compile(r"[A-Za-z0-9_]+")
_USTAR_NAME_BYTES = 100
_OURS = re.compile(r"\.?[A-Za-z0-9_]+-\d{6}\.tar(\.tmp)?|index|\.?(card\.json|README\.md)(\.tmp)?")


def write_shards(
    directory: Path | str,
    split: str,
    samples: Iterable[RawSample],
    samples_per_shard: int = 1000,
    seen: set[bytes] | None = None,
) -> list[Path]:
    """Write `SPLIT-000000.tar`, `SPLIT-000001.tar`, … and return their paths; no samples give no tar.

    Headers are ustar with time, owner and group 0 and mode 0644, so the same samples give the same bytes. Each tar
    appears under its name only when it is complete and on disk.

    Args:
        samples: their members are written in the given order, next to each other.
        seen: hashes of the keys that are taken already, to be unique over several splits; it is added to.

    Raises:
        ValueError: a key, extension or split name that the format or a careful reader cannot take, or a key twice.
    """
    directory = Path(directory)
    if not _SPLIT.fullmatch(split):
        raise ValueError(f"split {split!r}: only letters, digits and underscores can stand in a shard's name")
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard is {samples_per_shard}, must be at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    taken: set[bytes] = set() if seen is None else seen
    remaining = iter(samples)
    paths: list[Path] = []
    while (first := next(remaining, None)) is not None:
        path = directory / f"{split}-{len(paths):06d}.tar"
        _write_tar(path, chain([first], islice(remaining, samples_per_shard - 1)), taken)
        paths.append(path)
    return paths


def valid_extension(extension: str) -> bool:
    """Whether a tar of ours can hold a member of this extension."""
    return _EXTENSION.fullmatch(extension) is not None


def build(source: Source, out: Path | str, samples_per_shard: int = 1000) -> Path:
    """Write a source as a shard directory: tars of all splits, index and data card. Returns the directory.

    What an earlier build left there is replaced. The card is written last: a directory without one is incomplete.

    Raises:
        ValueError: `out` holds files that no build writes, or a sample is not valid.
    """
    from mmalign.data.card import write_card
    from mmalign.data.index import build_index
    from mmalign.data.tally import Tally

    out = Path(out)
    _clear(out)
    tallies: dict[str, Tally] = {}
    taken: set[bytes] = set()
    for split in source.splits():
        tallies[split] = Tally()
        write_shards(out, split, _counted(source.samples(split), tallies[split].add), samples_per_shard, taken)
    build_index(out)
    write_card(out, source, tallies, samples_per_shard)
    return out


def _counted(samples: Iterable[RawSample], add: Callable[[RawSample], None]) -> Iterator[RawSample]:
    for sample in samples:
        add(sample)
        yield sample


def _clear(out: Path) -> None:
    """Remove an earlier build, complete or not, and nothing else."""
    if not out.exists():
        return
    entries = sorted(out.iterdir())
    foreign = [entry.name for entry in entries if not _OURS.fullmatch(entry.name)]
    if foreign:
        raise ValueError(f"{out} holds {foreign[0]!r}, which no build wrote; choose an empty or new directory")
    # The card and the index go first, so that what is left after an interruption is not taken for a complete build.
    (out / "card.json").unlink(missing_ok=True)
    shutil.rmtree(out / "index", ignore_errors=True)
    for entry in entries:
        if entry.name not in ("card.json", "index"):
            entry.unlink()


def _write_tar(path: Path, samples: Iterable[RawSample], taken: set[bytes]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as tar:
                for sample in samples:
                    _check(sample, taken)
                    for extension, data in sample.members.items():
                        tar.addfile(_header(f"{sample.key}.{extension}", len(data)), io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync_directory(path.parent)


def _header(name: str, size_bytes: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = size_bytes, 0, 0o644
    header.uid = header.gid = 0
    header.uname = header.gname = ""
    return header


def _check(sample: RawSample, taken: set[bytes]) -> None:
    """Refuse what would make an unsafe, ambiguous or unreadable tar; note the key as taken."""
    if not _KEY.fullmatch(sample.key):
        raise ValueError(
            f"key {sample.key!r}: keys start with a letter, digit or underscore and hold no dot, slash or control sign"
        )
    if not sample.members:
        raise ValueError(f"sample {sample.key!r} has no members")
    for extension in sample.members:
        if not valid_extension(extension):
            raise ValueError(f"sample {sample.key!r}: {extension!r} is no valid extension")
        if len(f"{sample.key}.{extension}".encode()) > _USTAR_NAME_BYTES:
            raise ValueError(f"sample {sample.key!r}: its member {extension!r} needs a name of more than 100 bytes")
    digest = hashlib.blake2b(sample.key.encode("utf-8"), digest_size=8).digest()
    if digest in taken:
        raise ValueError(f"key {sample.key!r} occurs twice")
    taken.add(digest)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
