"""The numbers of a card are those of the files."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmalign.data.card import read_card
from mmalign.data.commands import build, card, check, index, make_source
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.data.sources.base import Source, json_member


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def wav(seconds: float, rate_hz: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(round(seconds * rate_hz), dtype=np.int16), rate_hz, format="WAV")
    return file.getvalue()


class Zoo(Source):
    name, licence, description = "zoo", "CC-BY-4.0", "Animals | <script>alert(1)</script>"

    def __init__(self, root: Path = Path("/home/somebody/zoo"), workers: int = 1):
        self.root, self.workers = root, workers

    def splits(self) -> list[str]:
        return ["train", "test"]

    def samples(self, split: str) -> Iterator[RawSample]:
        captions = json_member({"captions": {"en": ["a frog", "frog"], "fr": ["grenouille"]}})
        if split == "train":
            yield RawSample(
                "frog", {"png": png(10, 20), "speech.fr.wav": wav(1.5), "speech.en.wav": wav(0.5), "json": captions}
            )
            yield RawSample("owl", {"png": png(30, 40), "speech.fr.wav": wav(1.0), "txt": b"an owl"})
        else:
            yield RawSample("bear", {"png": b"no picture", "txt": b"a bear"})

    def provenance(self) -> dict[str, Any]:
        return {"archive": "zoo.zip", "sha256": "0" * 64}

    def report(self) -> dict[str, Any]:
        return {"excluded": {"no caption": 4}, "shortened": 2}


def test_counts_sizes_durations_languages(tmp_path):
    build(Zoo(), tmp_path)
    described = read_card(tmp_path)
    train = described["splits"]["train"]
    assert train["samples"] == 2
    picture, speech, captions = (train["members"][name] for name in ("png", "speech.*.wav", "captions"))
    assert picture["width_pixels"] == {"min": 10, "mean": 20, "max": 30}
    assert picture["height_pixels"] == {"min": 20, "mean": 30, "max": 40}
    assert picture["bytes"] == len(png(10, 20)) + len(png(30, 40))
    assert (speech["count"], speech["samples"], speech["languages"]) == (3, 2, {"en": 1, "fr": 2})
    assert speech["seconds"] == {"min": 0.5, "mean": 1.0, "max": 1.5}
    assert speech["total_seconds"] == 3.0
    assert (captions["count"], captions["samples"], captions["languages"]) == (3, 1, {"en": 2, "fr": 1})
    assert described["splits"]["test"]["members"]["png"]["unreadable"] == 1


def test_states_source_settings_report_and_hashes(tmp_path):
    build(Zoo(), tmp_path, samples_per_shard=1)
    described = read_card(tmp_path)
    assert described["settings"] == {"root": "zoo", "samples_per_shard": 1}
    assert described["report"] == Zoo().report()
    assert [(shard["name"], shard["samples"]) for shard in described["shards"]] == [
        ("train-000000.tar", 1),
        ("train-000001.tar", 1),
        ("test-000000.tar", 1),
    ]
    for shard in described["shards"]:
        data = (tmp_path / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_page_says_it_all_and_holds_no_markup_of_the_data(tmp_path):
    build(Zoo(), tmp_path)
    page = card(tmp_path)
    assert page == (tmp_path / "README.md").read_text(encoding="utf-8")
    for part in ("CC-BY-4.0", "no caption: `4`", "zoo.zip", "| train | png | 2 | 2 |", "| speech.*.wav | fr | 2 | 0 |"):
        assert part in page
    assert "<script>" not in page


def test_tars_of_others_are_counted_once_they_have_an_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="mmalign data index"):
        card(tmp_path)
    write_shards(tmp_path, "train", Zoo().samples("train"))
    with pytest.raises(FileNotFoundError, match=r"card\.json"):
        read_card(tmp_path)
    index(tmp_path)
    page = card(tmp_path)
    assert "Shards that mmalign did not build." in page
    assert "width pixels 10 / 20 / 30" in page


def test_check_finds_what_cannot_be_decoded(tmp_path):
    build(Zoo(), tmp_path)
    assert [fault.key for fault in check(tmp_path)] == ["bear"]


def test_commands_build_by_name_with_settings_as_text(tmp_path):
    build("scenes", tmp_path, train="3", val=0, test=2, test_compositional=0, image_size="32")
    described = json.loads((tmp_path / "card.json").read_text())
    assert {split: part["samples"] for split, part in described["splits"].items()} == {"train": 3, "test": 2}
    assert described["settings"]["image_size"] == 32


def test_commands_refuse_unknown_sources_and_settings():
    with pytest.raises(ValueError, match="no data source 'scnes'"):
        make_source("scnes")
    with pytest.raises(ValueError, match="colours"):
        make_source("scenes", {"colours": 3})
    with pytest.raises(ValueError, match="train"):
        make_source("scenes", {"train": "many"})
    with pytest.raises(ValueError, match=r"no mmalign\.data\.sources\.base\.Source"):
        make_source("collections.Counter")
