"""An archive writes into its folder and nowhere else."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mmalign.assets.unpack import copy, take, unpack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def _zip(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo(name), b"x")
    return path


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\evil"])
def test_zip_members_outside_are_refused(tmp_path: Path, folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="outside"):
        unpack(_zip(tmp_path / "x.whl", name), folder)
    assert not list(folder.iterdir())
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("members", [{"../evil": b"x"}, {"link": "../../evil"}, {"link": "/etc", "link/evil": b"x"}])
def test_tar_members_and_links_outside_are_refused(
    make_tar: Callable[..., Path], tmp_path: Path, folder: Path, members: dict[str, bytes | str]
) -> None:
    with pytest.raises(ValueError, match="refused"):
        unpack(make_tar(**members), folder)
    assert not (tmp_path / "evil").exists()


def test_a_debian_package_is_unpacked_with_its_inner_links(package: Path, folder: Path, tmp_path: Path) -> None:
    unpack(package, folder)
    taken = tmp_path / "taken"
    taken.mkdir()
    assert take(folder, "usr/share/toy", taken) == ""
    assert {path.relative_to(taken).as_posix() for path in taken.rglob("*")} == {
        "one.txt",
        "sub",
        "sub/two.txt",
        "link.txt",
    }
    assert (taken / "link.txt").is_symlink()
    assert (taken / "link.txt").read_text() == "one"


@pytest.mark.parametrize("name", ["x.whl", "x.tar.gz", "x.deb", "x.rar"])
def test_a_broken_archive_is_a_clear_error(tmp_path: Path, folder: Path, name: str) -> None:
    if name.endswith(".deb"):
        import shutil

        if shutil.which("dpkg-deb") is None:
            pytest.skip("dpkg-deb is not installed")
    (tmp_path / name).write_bytes(b"no archive at all")
    with pytest.raises(ValueError, match=name):
        unpack(tmp_path / name, folder)


def test_a_folder_with_a_link_that_leads_out_is_not_copied(tmp_path: Path, folder: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    (tmp_path / "secret").write_text("secret")
    (origin / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="leads out"):
        copy(origin, folder)
    assert not list(folder.iterdir())


def test_a_missing_member_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="no member 'model'"):
        take(folder, "model", tmp_path)
