"""Nothing vanishes: what is used and what is quarantined add up, for every fault in every place."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign.cli import main
from mmalign.data.check import check
from mmalign.data.config import ShardData
from mmalign.data.faults import Fault, Limits, QuarantineLog, SampleError, report_faults
from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shardset import ShardSet
from mmalign.data.stream import Stream
from mmalign.encoders.base import Preprocess, SeriesPreprocess

LIMITS = Limits(max_pixels=1000, max_audio_seconds=1.0, max_member_bytes=20_000, max_text_bytes=200)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()


def wav(frames: int, value: float = 0.0) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.full(frames, value), 8000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def faults(picture: Callable[..., bytes], recording: Callable[..., bytes]) -> dict[str, dict[str, bytes]]:
    """What each fault puts in place of a good member."""
    jpeg, png, webp = (picture(0, form) for form in ("JPEG", "PNG", "WEBP"))
    flac, ogg = recording(0, "FLAC", 4000), recording(0, "OGG", 4000)
    return {
        "truncated JPEG": {"png": jpeg[:-30]},
        "truncated PNG": {"png": png[:-1]},
        "truncated WebP": {"png": webp[: len(webp) // 2]},
        "corrupt PNG": {"png": png[:60] + b"x" * 20 + png[80:]},
        "corrupt JPEG": {"png": b"x" * 20 + jpeg[20:]},
        "an empty picture": {"png": b""},
        "a picture above the pixel limit": {"png": picture(0, side=32)},
        "truncated FLAC": {"flac": flac[:-9]},
        "corrupt FLAC": {"flac": flac[:3000] + b"\xff" * 50 + flac[3050:]},
        "truncated Ogg": {"flac": ogg[:-9]},
        "corrupt Ogg": {"flac": ogg[:3000] + b"\xff" * 50 + ogg[3050:]},
        "a recording above the limit": {"flac": wav(8001)},
        "a recording of zero length": {"flac": wav(0)},
        "a recording of NaN": {"flac": wav(10, float("nan"))},
        "Latin-1": {"txt": "é".encode("latin-1")},
        "UTF-16": {"txt": "text".encode("utf-16")},
        "an empty text": {"txt": b""},
        "a text above the limit": {"txt": b"t" * 201},
        "a member above the limit": {"extra": b"x" * 20_001},
        "an array of NaN": {"npy": npy(np.full((2, 3), np.nan))},
        "an array of objects": {"npy": npy(np.array([[print]], dtype=object))},
        "an array of another shape": {"npy": npy(np.zeros((2, 4)))},
        "a json that is none": {"json": b"{"},
        "a json that is a list": {"json": b"[]"},
        "a json of a thousand brackets": {"json": b"[" * 150},
    }


NAMES = list(faults(lambda *a, **k: b"\0" * 4000, lambda *a, **k: b"\0" * 4000))


@pytest.fixture
def every(preprocess: dict[str, Preprocess]) -> dict[str, Preprocess]:
    return preprocess | {"series": SeriesPreprocess(channels=3, hertz=50.0)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("places", [(0,), (5,), (11,), (0, 1, 10, 11)], ids=["first", "middle", "last", "several"])
def test_used_and_quarantined_add_up(
    name: str,
    places: tuple[int, ...],
    every: dict[str, Preprocess],
    tmp_path: Path,
    make_tar: Any,
    make_sample: Any,
    make_picture: Any,
    make_recording: Any,
) -> None:
    fault = faults(make_picture, make_recording)[name]
    samples = []
    for number in range(12):
        key, members = make_sample(number)
        members["npy"] = npy(np.zeros((2, 3)))
        samples.append((key, members | fault if number in places else members))
    make_tar(tmp_path / "train-000000.tar", samples[:6])
    make_tar(tmp_path / "train-000001.tar", samples[6:])
    build_index(tmp_path)
    members = {"image": "png", "audio": "flac", "text": "txt", "series": "npy"}
    # All suffixes are those of the good members: what counts is the content.
    data = ShardData(str(tmp_path), modalities=members)
    stream = Stream({"d": (data, 1.0)}, every, 4, seed=0, stage="s", steps=3, limits=LIMITS)
    batches = [stream[step] for step in range(3)]
    used = {key for batch in batches for key in batch.keys}
    quarantined = {f"d/{fault['key']}" for batch in batches for fault in batch.faults}
    assert quarantined == {f"d/{number:06d}" for number in places}
    assert not used & quarantined
    assert len(used | quarantined) == 12
    assert all(len(batch) == 4 for batch in batches)
    log = QuarantineLog(tmp_path / "quarantine.jsonl")
    for batch in batches:
        log.add(batch.faults)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    for line in lines:
        with tarfile.open(tmp_path / line["shard"]) as tar:
            assert tar.getmember(line["key"] + ".png").offset == line["offset"]
        assert line["error"]
    assert len(lines) == log.count == len(places)
    if name not in ("an array of another shape",):  # which only the encoder knows
        assert {f.key for f in check(tmp_path, LIMITS)} == {f"{number:06d}" for number in places}


def test_replacements_are_the_same_on_all_ranks(
    preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any, make_sample: Any
) -> None:
    samples = [make_sample(number) for number in range(10)]
    for number in (1, 4, 7):
        samples[number][1]["txt"] = b""
    make_tar(tmp_path / "train-000000.tar", samples)
    build_index(tmp_path)
    data = {"d": (ShardData(str(tmp_path), modalities={"text": "txt"}), 1.0)}
    for step in range(3):
        whole = Stream(data, preprocess, 8, 0, "s", 3)[step]
        parts = [Stream(data, preprocess, 8, 0, "s", 3, rank=rank, world=4)[step] for rank in range(4)]
        assert [key for part in parts for key in part.keys] == whole.keys
        assert [fault for part in parts for fault in part.faults] == whole.faults


def test_a_data_set_without_usable_samples_stops(
    preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any
) -> None:
    make_tar(tmp_path / "train-000000.tar", [(str(i), {"txt": b"\xff"}) for i in range(5)])
    build_index(tmp_path)
    stream = Stream({"d": (ShardData(str(tmp_path)), 1.0)}, preprocess, 4, 0, "s", 1)
    with pytest.raises(RuntimeError, match=r"'d': 17 samples in a row .* UnicodeDecodeError"):
        stream[0]


def test_samples_without_any_modality_are_faults(
    preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any
) -> None:
    make_tar(tmp_path / "train-000000.tar", [("a", {"txt": b"t"}), ("b", {"pkl": b"t"}), ("c", {"json": b"{}"})])
    build_index(tmp_path)
    batch = Stream({"d": (ShardData(str(tmp_path)), 1.0)}, preprocess, 3, 0, "s", 1)[0]
    assert {fault["key"]: fault["stage"] for fault in batch.faults} == {"b": "select", "c": "select"}
    assert [(f.key, f.stage) for f in check(tmp_path)] == [("b", "select"), ("c", "select")]
    assert {f.key for f in check(tmp_path, required=["txt"])} == {"b", "c"}


def test_indexing_says_what_was_found(tmp_path: Path, make_tar: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_tar(tmp_path / "train-000000.tar", [(str(i), {"txt": b"t" * 600}) for i in range(4)])
    make_tar(tmp_path / "val-000000.tar", [])
    with open(path, "r+b") as file:
        file.truncate(3 * 1536 + 600)
    assert main(["data", "index", str(tmp_path), "--tolerate"]) == 0
    fault, train, val, empty = capsys.readouterr().out.splitlines()
    assert fault.startswith("train-000000.tar, sample '3', byte ")
    assert train == "train: 3 samples in 1 tars, 1 faults"
    assert val == "val: 0 samples in 1 tars, 0 faults"
    assert empty == "val-000000.tar holds no samples"


def test_a_changed_tar_of_the_same_size_is_told_of(tmp_path: Path, make_tar: Any) -> None:
    path = make_tar(tmp_path / "train-000000.tar", [("a", {"txt": b"one"})])
    build_index(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    assert check(tmp_path)[0].error == "the shard is not the one that was indexed: its bytes differ"


def test_faults_of_the_index_open_the_run(preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any) -> None:
    path = make_tar(tmp_path / "train-000000.tar", [(str(i), {"txt": b"t" * 600}) for i in range(4)])
    with open(path, "r+b") as file:
        file.truncate(3 * 1536 + 600)
    build_index(tmp_path, tolerate=True)
    data = {"d": (ShardData(str(tmp_path), modalities={"text": "txt"}), 1.0)}
    batches = [Stream(data, preprocess, 4, 0, "s", 2, rank=rank, world=2)[step] for step in (0, 1) for rank in (0, 1)]
    (fault,) = batches[0].faults
    assert (fault["dataset"], fault["key"], fault["stage"]) == ("d", "3", "index")
    assert not any(batch.faults for batch in batches[1:])


def test_the_log_keeps_each_fault_once(tmp_path: Path) -> None:
    fault = Fault("x.tar", "k<script>\n", 512, "decode", "é", "d", "train")
    log = QuarantineLog(tmp_path / "run" / "quarantine.jsonl")
    assert not log.path.exists()
    assert (log.add([fault, fault.to_dict()]), log.add([fault]), log.count) == (1, 0, 1)
    assert log.add([Fault("x.tar", "k<script>\n", 512, "read", "é", "d", "train")]) == 1
    with open(log.path, "a") as file:
        file.write('{"shard": "x.ta')  # killed while writing
    log = QuarantineLog(log.path)
    assert (log.count, log.add([fault]), log.add([Fault("y.tar", "", 0, "index", "e")])) == (2, 0, 1)
    assert [json.loads(line)["shard"] for line in log.path.read_text().splitlines()] == ["x.tar", "x.tar", "y.tar"]


def test_ranks_write_one_log(tmp_path: Path) -> None:
    """A sample that two ranks met stands there once, and each rank counts what all of them found."""
    first, second = (QuarantineLog(tmp_path / "quarantine.jsonl") for _ in range(2))
    one, two = (Fault("x.tar", key, 0, "decode", "é", "d", "train") for key in "ab")
    assert (first.add([one]), second.add([one, two]), first.add([two]), second.add([])) == (1, 1, 0, 0)
    other = Fault("y.tar", "c", 0, "decode", "e", "d", "test")
    with first.reported():
        report_faults([other])
    report_faults([Fault("z.tar", "d", 0, "decode", "e", "d", "test")])  # outside of a run: nobody's
    second.refresh()
    assert first.count == second.count == 3
    assert second.count_of({("d", "train")}) == 2
    assert [json.loads(line)["key"] for line in first.path.read_text().splitlines()] == ["a", "b", "c"]


def mutate(data: bytes, generator: random.Random) -> bytes:
    """A few changes of the kinds that disks, networks and attackers make."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        if not changed:
            break
        at = generator.randrange(len(changed))
        aligned = at - at % 512
        match generator.randrange(6):
            case 0:
                changed[at] ^= 1 << generator.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at : at + 16] = generator.randbytes(16)
            case 3:
                del changed[aligned : aligned + 512 * generator.randint(1, 3)]
            case 4:
                changed[aligned:aligned] = changed[aligned : aligned + 512 * generator.randint(1, 3)]
            case 5:
                changed[aligned : aligned + 512] = bytes(512)
    return bytes(changed)


def usable(samples: ShardSet) -> tuple[dict[str, RawSample], list[Fault]]:
    used, lost = {}, []
    for index in range(len(samples)):
        try:
            sample = samples.read(index)
            used[sample.key] = sample
        except SampleError as error:
            lost.append(samples.fault(index, error))
    return used, lost


@given(st.integers())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_mutated_shards(shards: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Damaged after indexing, each sample is read as it was or is a fault; damaged before, its loss is named."""
    directory = tmp_path_factory.mktemp("mutated")
    name = "train-000000.tar"
    data = (shards / name).read_bytes()
    mutated = mutate(data, random.Random(seed))
    (directory / name).write_bytes(mutated)
    (directory / "index").mkdir()
    for part in ("train.npy", "train.json"):
        (directory / "index" / part).write_bytes((shards / "index" / part).read_bytes())
    (directory / "train-000001.tar").hardlink_to(shards / "train-000001.tar")
    original, _ = usable(ShardSet.open(shards, "train"))
    used, lost = usable(ShardSet.open(directory, "train"))
    assert all(sample.members == original[key].members for key, sample in used.items())
    assert len(used) + len(lost) == 20
    if seed % 5 == 0:
        assert mutated == data or check(directory)

    index = build_index(directory, tolerate=True)["train"]
    found, lost = usable(ShardSet.open(directory, "train"))
    assert not lost
    assert len(found) == index.samples
    # Whoever is gone is accounted for; nobody lost a member, unless whole blocks went without leaving a trace.
    gone = original.keys() - found.keys()
    assert not gone or index.faults or len(mutated) < len(data)
