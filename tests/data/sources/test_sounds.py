"""Converters of recordings, on local files in the layouts that `aac-datasets` and ESC-50 have."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmalign.data.card import read_card
from mmalign.data.commands import build
from mmalign.data.sources.sounds import ESC50, AudioCaps, Clotho, WavCaps


def record(path: Path, seconds: float = 0.5, rate_hz: int = 32_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(np.arange(round(seconds * rate_hz)) / 20)
    soundfile.write(path, np.stack([tone] * channels, 1), rate_hz)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def drawn(source) -> dict[str, list]:
    return {split: list(source.samples(split)) for split in source.splits()}


def test_audiocaps_ragged_captions_and_lost_clips(tmp_path):
    base = tmp_path / "AUDIOCAPS"
    head = "audiocap_id,youtube_id,start_time,caption"
    write(base / "csv_files_v1" / "train.csv", head, '1,-abc,30,"A dog, barking"', "2,lost,0,Gone")
    write(base / "csv_files_v1" / "test.csv", head, "3,xyz,10,Rain falls", "4,xyz,10,It rains")
    record(base / "audio_32000Hz" / "train" / "-abc_30.flac")
    record(base / "audio_32000Hz" / "test" / "xyz_10.flac")
    card = read_card(build("audiocaps", tmp_path / "out", root=tmp_path, sample_rate_hz=16_000))
    assert {split: part["samples"] for split, part in card["splits"].items()} == {"train": 1, "test": 1}
    assert card["splits"]["test"]["members"]["captions"]["count"] == 2
    assert card["splits"]["train"]["members"]["flac"]["sample_rate_hz"]["max"] == 16_000
    assert card["report"]["file missing"] == {"count": 1, "items": ["train/lost_0.flac"]}
    assert set(card["provenance"]["sha256"]) == {"train.csv", "test.csv"}
    sample = next(AudioCaps(tmp_path).samples("train"))
    assert sample.members["txt"] == b"A dog, barking"


def test_clotho_parts_become_splits(tmp_path):
    base = tmp_path / "CLOTHO_v2.1"
    head = "file_name," + ",".join(f"caption_{i}" for i in range(1, 6))
    for part in ("development", "validation", "evaluation"):
        name = f"A file of {part} (1).wav"
        write(base / "clotho_csv_files" / f"clotho_captions_{part}.csv", head, f"{name},one,two,three,four,five")
        record(base / "clotho_audio_files" / part / name, rate_hz=44_100, channels=2)
    found = drawn(Clotho(tmp_path))
    assert {split: [s.metadata["name"] for s in part] for split, part in found.items()} == {
        "train": ["train/A file of development (1).wav"],
        "val": ["val/A file of validation (1).wav"],
        "test": ["test/A file of evaluation (1).wav"],
    }
    sample = found["test"][0]
    assert sample.metadata["captions"]["en"] == ["one", "two", "three", "four", "five"]
    wave, rate_hz = soundfile.read(io.BytesIO(sample.members["flac"]))
    assert (rate_hz, wave.shape) == (32_000, (16_000,))


def test_wavcaps_parts_exclusions_and_names_that_lead_out(tmp_path):
    base = tmp_path / "WavCaps"
    freesound = [{"id": str(i), "caption": f"sound {i % 10}", "duration": 0.5} for i in range(30)]
    write(base / "json_files" / "FreeSound" / "fsd_final.json", json.dumps({"data": freesound}))
    audioset = [{"id": "Yabc.wav", "caption": "a horn"}, {"id": "../../../secret", "caption": "secret"}]
    write(base / "json_files" / "AudioSet_SL" / "as_final.json", json.dumps({"data": audioset}))
    for i in range(30):
        record(base / "Audio" / "FreeSound" / f"{i}.flac", seconds=0.05)
    record(base / "Audio" / "AudioSet_SL" / "Yabc.flac")
    record(tmp_path / "secret.flac")
    write(tmp_path / "blacklist.json", json.dumps({"AudioSet": ["Yabc.wav"], "FreeSound": ["3", "13"]}))

    parts = ["FreeSound", "AudioSet_SL"]
    source = WavCaps(tmp_path, sources=parts, exclude=tmp_path / "blacklist.json", val_share=0.3, test_share=0.3)
    found = drawn(source)
    assert sum(map(len, found.values())) == 28
    sides: dict[bytes, set[str]] = {}
    for split, part in found.items():
        for sample in part:
            sides.setdefault(sample.members["txt"], set()).add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    report = source.report()
    assert report["on the list of exclusions"]["items"] == ["AudioSet_SL/Yabc", "FreeSound/13", "FreeSound/3"]
    assert report["name leads out of the data set"]["count"] == 1
    with pytest.raises(ValueError, match="no part 'Freesound'"):
        WavCaps(tmp_path, sources=["Freesound"])


def test_esc50_folds_and_classes(tmp_path):
    base = tmp_path / "ESC-50-master"
    rows = [
        f"{fold}-1-A-{i}.wav,{fold},{i},{name},False,1,A"
        for fold in range(1, 6)
        for i, name in ((0, "dog"), (36, "vacuum_cleaner"))
    ]
    write(base / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", *rows)
    for row in rows:
        record(base / "audio" / row.split(",")[0], seconds=0.05)
    found = drawn(ESC50(tmp_path))
    assert {split: len(part) for split, part in found.items()} == {"train": 6, "val": 2, "test": 2}
    sample = found["test"][1]
    assert sample.members["txt"] == b"the sound of vacuum cleaner"
    assert (sample.metadata["category"], sample.group, sample.metadata["fold"]) == (
        "vacuum cleaner",
        "vacuum cleaner",
        5,
    )


def test_a_missing_layout_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="AUDIOCAPS"):
        AudioCaps(tmp_path)
    (tmp_path / "CLOTHO_v2.1").mkdir()
    with pytest.raises(FileNotFoundError, match=r"clotho_captions_development\.csv"):
        Clotho(tmp_path).splits()
