"""The cache: whole or not there, verified again cheaply, repaired when damaged."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmalign import assets
from mmalign.assets import commands
from mmalign.assets.hashing import entry_sha256, tree_files, tree_sha256
from mmalign.assets.sources import LocalPath

Register = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "origin"
    (made / "sub").mkdir(parents=True)
    (made / "one.txt").write_text("one")
    (made / "sub/two.txt").write_text("two")
    return made


def _tree(folder: Path) -> str:
    return tree_sha256({path.as_posix(): entry_sha256(folder / path) for path in tree_files(folder)})


def test_path_before_fetch_names_the_command(register: Register, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mmalign assets fetch toy"):
        assets.path(register(LocalPath(folder)))
    with pytest.raises(ValueError, match="no asset 'toi'; there are"):
        assets.path("toi")


def test_a_second_fetch_touches_no_source(register: Register, folder: Path, tmp_path: Path) -> None:
    name = register(LocalPath(folder, files={"": _tree(folder)}))
    first = assets.fetch(name)
    folder.rename(tmp_path / "gone")
    assert assets.fetch(name) == assets.path(name) == first
    assert (first / "sub/two.txt").read_text() == "two"


@pytest.mark.parametrize("damage", ["change", "delete", "cut"])
def test_a_damaged_cache_is_fetched_again(register: Register, folder: Path, damage: str) -> None:
    name = register(LocalPath(folder, files={"": _tree(folder)}))
    victim = assets.fetch(name) / "sub/two.txt"
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_text("owt" if damage == "change" else "")
    assert (assets.fetch(name) / "sub/two.txt").read_text() == "two"


def test_a_new_time_alone_is_no_damage(register: Register, folder: Path, tmp_path: Path) -> None:
    name = register(LocalPath(folder))
    found = assets.fetch(name)
    os.utime(found / "one.txt", (1, 1))
    folder.rename(tmp_path / "gone")
    assert assets.fetch(name) == found


def test_a_folder_with_another_content_is_refused(register: Register, folder: Path, cache: Path) -> None:
    expected = _tree(folder)
    (folder / "one.txt").write_text("two")
    with pytest.raises(ValueError, match=rf"SHA-256 of the folder .* expected {expected}; not kept"):
        assets.fetch(register(LocalPath(folder, files={"": expected})))
    assert list(cache.iterdir()) == []


def test_an_interrupted_download_leaves_nothing_and_keeps_what_was_there(
    register: Register, folder: Path, cache: Path
) -> None:
    class Interrupted(LocalPath):
        def obtain(self, folder: Path, scratch: Path) -> object:
            (folder / "half").write_bytes(b"half")
            (scratch / "part").write_bytes(b"part")
            raise KeyboardInterrupt

    name = register(LocalPath(folder))
    found = assets.fetch(name)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch(name, source=Interrupted(folder))
    assert [path.name for path in cache.iterdir()] == [name]
    assert (found / "one.txt").read_text() == "one"


def test_a_registry_that_demands_another_hash_does_not_use_the_old_copy(register: Register, folder: Path) -> None:
    import dataclasses

    source = LocalPath(folder, files={"one.txt": entry_sha256(folder / "one.txt")})
    assets.fetch(register(source))
    stale = dataclasses.replace(source, files={"one.txt": "0" * 64})
    object.__setattr__(assets.ASSETS["toy"], "sources", (stale,))
    with pytest.raises(ValueError, match="not kept"):
        assets.fetch("toy")


def test_a_conversion_happens_once_and_before_the_cache_sees_it(register: Register, folder: Path) -> None:
    calls = []

    def join(made: Path) -> str:
        calls.append(made)
        (made / "joined.txt").write_text((made / "one.txt").read_text() + (made / "sub/two.txt").read_text())
        (made / "one.txt").unlink()
        return "joined.txt"

    name = register(LocalPath(folder, convert=join))
    assert assets.fetch(name).read_text() == "onetwo"
    assert assets.fetch(name).name == "joined.txt"
    assert len(calls) == 1
    assert not (assets.path(name).parent / "one.txt").exists()


def test_a_conversion_that_fails_leaves_nothing(register: Register, folder: Path, cache: Path) -> None:
    def fail(_: Path) -> str:
        raise ImportError("no converter")

    with pytest.raises(ImportError):
        assets.fetch(register(LocalPath(folder, convert=fail)))
    assert list(cache.iterdir()) == []


def test_the_commands_print_what_they_did(
    register: Register, folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = register(LocalPath(folder))
    commands.list_assets()
    assert "cached:  no" in capsys.readouterr().out
    commands.fetch([name])
    commands.path(name)
    assert capsys.readouterr().out == f"toy: {cache / 'toy'}\n{cache / 'toy'}\n"
    commands.list_assets()
    assert f"cached:  {cache / 'toy'}" in capsys.readouterr().out
    shutil.rmtree(cache / "toy")
    commands.list_assets()
    assert f"cached:  {cache / 'toy'}" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="no asset toi"):
        commands.fetch([name, "toi"])
