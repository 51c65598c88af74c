"""No name of a data set is ever opened as a URL or a command: not in a configuration, an index or the environment."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from webdataset.gopen import gopen, gopen_schemes

from mmalign.cli import main
from mmalign.data.check import check
from mmalign.data.config import ShardData
from mmalign.data.index import build_index
from mmalign.data.shardset import ShardSet
from mmalign.data.stream import Stream
from mmalign.encoders.base import Preprocess
from mmalign.training.config import check_config
from mmalign.training.run import check_data
from mmalign.training.yaml_config import ConfigError, read_config

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
COMMAND = "touch canary"
SCHEMES = sorted({*gopen_schemes, "PIPE", "gcs", "az", "wds", "data", "ssh", "rsync", "hf-hub", "local-dir", "git+ssh"})
URLS = [f"{scheme}:{COMMAND}" for scheme in SCHEMES if scheme != "__default__"]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


def test_the_canary_is_a_real_one(canary: Path) -> None:
    """webdataset itself would have run it."""
    assert "pipe:touch canary" in URLS
    gopen("pipe:touch canary").read()
    assert canary.exists()


PLACES: dict[str, Callable[[str], Any]] = {
    "a data set": lambda url: ShardData(url),
    "an opened data set": lambda url: ShardSet.open(url, "train"),
    "indexing": build_index,
    "checking": check,
    "a configuration's data": lambda url: check_data(
        {
            "model": {"init_args": {"encoders": {}}},
            "stages": {},
            "retention": {},
            "evaluation": {"a": {"shards": url, "split": "test"}},
        }
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("url", URLS)
def test_in_code(url: str, place: str, canary: Path) -> None:
    with pytest.raises(ValueError, match="only local directories are read"):
        PLACES[place](url)
    assert not canary.exists()


@pytest.mark.parametrize("url", ["pipe:touch canary", "https://x.org/a", "x://touch/canary"])
def test_in_a_configuration(url: str, canary: Path) -> None:
    """Refused with its key, before anything is built."""
    with pytest.raises(ConfigError, match=r"stages\.image_text.*only local directories are read"):
        check_config(read_config(DEBUG, {"stages.image_text.data.scenes.shards": url}))
    assert not canary.exists()


@pytest.mark.parametrize("verb", ["index", "check", "card"])
def test_on_the_command_line(verb: str, canary: Path, capsys: Any) -> None:
    assert main(["data", verb, f"pipe:{COMMAND}"]) == 2
    assert capsys.readouterr().err.startswith("mmalign: ")
    assert not canary.exists()


@pytest.mark.parametrize("url", URLS)
def test_in_an_index(url: str, shards: Path, canary: Path) -> None:
    copy = Path(shutil.copytree(shards, canary.parent / "copy"))
    path = copy / "index" / "train.json"
    described = json.loads(path.read_text())
    for name in (url, f"{url}.tar"):
        described["shards"][0]["name"] = name
        path.write_text(json.dumps(described))
        for action in (lambda: ShardSet.open(copy, "train"), lambda: build_index(copy)):
            with pytest.raises(ValueError, match="no plain file name"):
                action()
    assert not canary.exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GOPEN_REWRITE", "/=pipe:touch canary;data=pipe:touch canary;copy=pipe:touch canary"),
        ("GOPEN_BUFFER", "touch canary"),
        ("USE_AIS_FOR", "file:pipe:s3"),
        ("AIS_ENDPOINT", "pipe:touch canary"),
        ("WDS_REWRITE", "copy=pipe:touch canary"),
        ("WDS_VERBOSE_CACHE", "1"),
        ("TMPDIR", "pipe:touch canary"),
    ],
)
def test_in_the_environment(
    variable: str,
    value: str,
    shards: Path,
    canary: Path,
    preprocess: dict[str, Preprocess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What rewrites names for webdataset has no say here: the same batch comes out, and nothing runs."""

    def first(directory: str) -> list[str]:
        data = ShardData(directory, modalities={"image": "png", "text": "txt"})
        return Stream({"a": (data, 1.0)}, preprocess, 4, 0, "s", 1)[0].keys

    shutil.copytree(shards, "copy")
    expected = first("copy")
    monkeypatch.setenv(variable, value)
    build_index("copy")
    assert first("copy") == expected
    assert not canary.exists()
