import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mmalign.report.examples import AUDIO_TYPES, IMAGE_TYPES, media_name, media_path, read_examples, save_media
from mmalign.report.run import Run


@pytest.fixture
def run(run_maker: Callable[..., Path], tmp_path: Path) -> Path:
    return run_maker(tmp_path / "naive", "naive", 3)


def test_what_is_there_is_read(run: Path) -> None:
    loaded = Run(run)
    assert (loaded.name, loaded.arm, loaded.seed) == ("forgetting/naive/seed-3", "naive", 3)
    assert [stage["name"] for stage in loaded.stages] == ["image-text", "audio-text"]
    total = loaded.cost["total"]
    assert total["samples"] == 2 * 57600  # a flow adds up
    assert total["peak_memory_bytes"] == 2.1e9  # a peak does not
    assert total["samples_per_second"] == pytest.approx((600 + 2 * 300) / 3)  # a rate is averaged over time
    assert total["data_wait_share"] == pytest.approx((0.05 + 2 * 0.1) / 3)
    steps, values = loaded.series("loss/audio_text")
    assert min(steps) > 300
    assert all(map(math.isfinite, values))
    assert {row.stage for row in loaded.last_rows} == {"audio-text"}


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2", b"\xff\xfe\x00", b"null", b"[]", b'"text"', b"{}"])
def test_damaged_side_files_cost_only_their_section(run: Path, damage: bytes) -> None:
    for name in (
        "run.json",
        "cost.json",
        "diagnostics.json",
        "quarantine.jsonl",
        "train.csv",
        "examples/examples.json",
    ):
        (run / name).write_bytes(damage)
    loaded = Run(run)
    assert loaded.stages == []
    assert loaded.cost == {}
    assert loaded.modality_gap == {}
    assert loaded.examples == []
    assert loaded.train == []
    assert loaded.name == "naive"
    assert loaded.seed == 3  # the rows say so


def test_a_torn_last_line_of_train_csv_is_left_out(run: Path) -> None:
    before = len(Run(run).train)
    with open(run / "train.csv", "a") as file:
        file.write("601,audio-text,0.3")
    assert len(Run(run).train) == before


@pytest.mark.parametrize("key", ["../../etc/passwd", "a/b", "/", "", "\0", "ü" * 300, "a.b", "CON"])
def test_a_key_never_becomes_a_path(tmp_path: Path, key: str) -> None:
    name = save_media(tmp_path / "run", key, "png", b"x")
    assert [path.name for path in (tmp_path / "run" / "examples").iterdir()] == [name]
    assert media_path(tmp_path / "run", name, IMAGE_TYPES) is not None
    assert media_path(tmp_path / "run", name, AUDIO_TYPES) is None


def test_keys_that_read_alike_have_files_of_their_own() -> None:
    assert len({media_name(key, "png") for key in ("a/b", "a_b", "a.b", "a b")}) == 4
    with pytest.raises(ValueError, match="svg"):
        media_name("a", "svg")


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/x.png", "..", "a/../b.png", ".png", "x.svg", "x.html", "a\n.png"]
)
def test_a_name_that_leaves_the_folder_is_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    assert media_path(tmp_path, name, IMAGE_TYPES) is None


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "examples" / "a.png").symlink_to(tmp_path / "secret.png")
    assert media_path(tmp_path, "a.png", IMAGE_TYPES) is None


def test_entries_that_are_no_examples_are_left_out(run: Path) -> None:
    path = run / "examples" / "examples.json"
    entries = json.loads(path.read_text())
    good = len(entries)
    path.write_text(json.dumps([*entries, 3, {}, {"column": "x"}, {**entries[0], "rank": "first"}, None]))
    assert len(read_examples(run)) == good
