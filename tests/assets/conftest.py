"""A cache of its own for every test, and archives made on the spot: nothing here reaches a network."""

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmalign.assets.registry import ASSETS, Asset
from mmalign.assets.sources import Source


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MMALIGN_CACHE", str(folder))
    return folder


@pytest.fixture
def register(cache: Path) -> Iterator[Callable[..., str]]:
    """Adds an asset "toy" with the given sources to the registry for one test."""

    def add(*sources: Source) -> str:
        ASSETS["toy"] = Asset("toy", "a toy", "MIT", 1, sources)
        return "toy"

    yield add
    ASSETS.pop("toy", None)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A folder to find links in, with the wheel toy-1.0 that holds toy/weights.bin and toy/model/{a,b}.txt."""
    links = tmp_path / "links"
    links.mkdir()
    members = {
        "toy/weights.bin": b"weights",
        "toy/model/a.txt": b"a",
        "toy/model/b.txt": b"b",
        "toy-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\nRequires-Dist: nowhere\n",
        "toy-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(links / "toy-1.0-py3-none-any.whl", "w") as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return links


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The Debian package toy 1.0 with /usr/share/toy/{one.txt, sub/two.txt, link.txt -> one.txt}."""
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: toy\nVersion: 1.0\nArchitecture: all\nMaintainer: Toy <toy@example.org>\nDescription: a toy\n"
    )
    share = root / "usr/share/toy"
    (share / "sub").mkdir(parents=True)
    (share / "one.txt").write_text("one")
    (share / "sub/two.txt").write_text("two")
    (share / "link.txt").symlink_to("one.txt")
    out = tmp_path / "toy_1.0_all.deb"
    try:
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "--build", str(root), str(out)], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("dpkg-deb is not installed")
    return out


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tar from names to bytes; a value that is text is the target of a link."""

    def make(**members: bytes | str) -> Path:
        path = tmp_path / "archive.tar"
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                if isinstance(data, str):
                    info.type, info.linkname = tarfile.SYMTYPE, data
                    tar.addfile(info)
                else:
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return path

    return make
