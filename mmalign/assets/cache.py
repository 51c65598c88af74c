"""The cache folder: one folder per asset, with a stamp that says what was verified.

An asset is built in a temporary folder beside its place, verified, and moved there in one step: what stands at its
place is whole. The stamp records each file's size and time, so that a second `fetch` need not read everything again.
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmalign.assets.hashing import STAMP, entry_sha256, tree_files, tree_sha256
from mmalign.assets.registry import ASSETS, Asset
from mmalign.assets.sources import Source, Unavailable


def cache_folder() -> Path:
    """`$MMALIGN_CACHE`, or the user's cache folder as the operating system has it."""
    if chosen := os.environ.get("MMALIGN_CACHE"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("mmalign"))


@dataclass(frozen=True)
class Stamp:
    """What stands in the cache.

    `files`: path -> [size in bytes, mtime in ns, SHA-256]; `verified`: the hashes that were demanded of the source;
    `own_source`: the caller named the source, so the registry's hashes do not apply.
    """

    asset: str
    origin: str
    entry: str
    archive: str
    archive_sha256: str
    verified: dict[str, str]
    files: dict[str, list[Any]]
    own_source: bool = False

    @staticmethod
    def read(folder: Path) -> "Stamp | None":
        try:
            return Stamp(**json.loads((folder / STAMP).read_text(encoding="utf-8")))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def intact(self, folder: Path) -> bool:
        """Whether every recorded file is there with its size and time, or failing that with its content."""
        return all(_unchanged(folder / name, *recorded) for name, recorded in self.files.items())


def _unchanged(path: Path, size: int, mtime_ns: int, sha256: str) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return status.st_size == size and (status.st_mtime_ns == mtime_ns or entry_sha256(path) == sha256)


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ValueError(f"no asset {name!r}; there are {', '.join(sorted(ASSETS))}")
    return ASSETS[name]


def _current(asset: Asset) -> Stamp | None:
    """The stamp of what is cached, None when nothing is or when the registry now demands other hashes."""
    stamp = Stamp.read(cache_folder() / asset.name)
    demanded = [dict(source.files) for source in asset.sources]
    if stamp is None or (stamp.verified not in demanded and not stamp.own_source):
        return None
    return stamp


def path(name: str) -> Path:
    """The cached file or folder of an asset. Never downloads.

    Raises:
        ValueError: there is no asset of this name.
        FileNotFoundError: it is not in the cache; the message is the command that fetches it.
    """
    asset = _asset(name)
    stamp = _current(asset)
    found = cache_folder() / asset.name / (stamp.entry if stamp else "")
    if stamp is None or not found.exists():
        raise FileNotFoundError(f"asset {name!r} is not in {cache_folder()}; run: mmalign assets fetch {name}")
    return found


def provenance(name: str) -> dict[str, str]:
    """Where the cached asset came from: asset, origin, archive, its SHA-256, and one SHA-256 over all files.

    Raises: as `path`.
    """
    path(name)
    stamp = Stamp.read(cache_folder() / name)
    assert stamp is not None
    tree = tree_sha256({file: recorded[2] for file, recorded in stamp.files.items()})
    keys = {"asset": name, "origin": stamp.origin, "archive": stamp.archive, "archive_sha256": stamp.archive_sha256}
    return keys | {"tree_sha256": tree, "licence": ASSETS[name].licence}


def describe() -> list[dict[str, str]]:
    """One row an asset: name, what it is, licence, size, where it is cached or "no", and the sources to try."""
    rows = []
    for asset in ASSETS.values():
        try:
            cached = str(path(asset.name))
        except FileNotFoundError:
            cached = "no"
        rows.append(
            {
                "name": asset.name,
                "description": asset.description,
                "licence": asset.licence,
                "download": f"{asset.download_mb} MB",
                "cached": cached,
                "sources": "; ".join(source.origin for source in asset.sources),
            }
        )
    return rows


def fetch(name: str, source: Source | None = None) -> Path:
    """Makes sure that an asset is in the cache and returns its file or folder.

    Args:
        name: an asset of the registry.
        source: take it from here instead of from the registry's sources (a local copy, say).

    Raises:
        ValueError: unknown name, or a source served something whose hash is wrong; nothing of it is kept.
        ConnectionError: no source could serve it; the message gives each one's reason.
    """
    asset = _asset(name)
    stamp = _current(asset)
    if stamp and source is None and stamp.intact(cache_folder() / name):
        return path(name)
    reasons = []
    for candidate in (source,) if source else asset.sources:
        try:
            return _fetch_from(asset, candidate, own_source=source is not None)
        except Unavailable as reason:
            reasons.append(f"{candidate.origin}: {reason}")
    raise ConnectionError(f"asset {name!r} could not be fetched from any source:\n  " + "\n  ".join(reasons))


def _fetch_from(asset: Asset, source: Source, own_source: bool) -> Path:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{asset.name}-", dir=cache_folder(), ignore_cleanup_errors=True) as made:
        folder, scratch = Path(made, "content"), Path(made, "scratch")
        folder.mkdir()
        scratch.mkdir()
        obtained = source.obtain(folder, scratch)
        _verify(asset.name, source, folder)
        entry = source.convert(folder) if source.convert else obtained.entry
        stamp = Stamp(
            asset.name,
            source.origin,
            entry,
            obtained.archive,
            obtained.archive_sha256,
            dict(source.files),
            _record(folder),
            own_source,
        )
        (folder / STAMP).write_text(json.dumps(asdict(stamp), indent=1, sort_keys=True), encoding="utf-8")
        _put(folder, cache_folder() / asset.name, Path(made, "old"))
    return path(asset.name)


def _verify(name: str, source: Source, folder: Path) -> None:
    for file, expected in source.files.items():
        if file:
            target = folder / file
            if not target.is_file():
                raise ValueError(f"asset {name!r}: {source.origin} has no file {file}")
            found = entry_sha256(target)
        else:
            found = tree_sha256({path.as_posix(): entry_sha256(folder / path) for path in tree_files(folder)})
        if found != expected:
            what = file or "the folder"
            raise ValueError(
                f"asset {name!r}: SHA-256 of {what} from {source.origin} is {found}, expected {expected}; not kept"
            )


def _record(folder: Path) -> dict[str, list[Any]]:
    recorded = {}
    for file in tree_files(folder):
        status = (folder / file).lstat()
        recorded[file.as_posix()] = [status.st_size, status.st_mtime_ns, entry_sha256(folder / file)]
    return recorded


def _put(folder: Path, place: Path, old: Path) -> None:
    """Moves a finished folder to its place; a former one (broken, or of an older registry) is deleted."""
    try:
        os.replace(folder, place)
    except OSError:  # a folder that is not empty stands there
        os.replace(place, old)
        os.replace(folder, place)
    shutil.rmtree(old, ignore_errors=True)
