"""Indexing finds every sample or says what it lost; reading by index gives what the tars hold."""

import errno
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from mmalign.data.check import check
from mmalign.data.faults import Limits, SampleError
from mmalign.data.index import ShardError, build_index
from mmalign.data.scan import key_hash
from mmalign.data.shardset import Shard, ShardSet


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_reads_what_webdataset_reads(shards: Path) -> None:
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    expected = [
        (s["__key__"], {name: data for name, data in s.items() if not name.startswith("__")})
        for s in webdataset.WebDataset(urls, shardshuffle=False)
    ]
    samples = ShardSet.open(shards, "train")
    assert [(s.key, s.members) for s in map(samples.read, range(len(samples)))] == expected
    assert samples.keys.tolist() == [key_hash(key) for key, _ in expected]


def test_the_index_is_deterministic_and_mapped(shards: Path, copy: Path) -> None:
    build_index(copy)
    for name in ("train.npy", "train.json"):
        assert (copy / "index" / name).read_bytes() == (shards / "index" / name).read_bytes()
    samples = ShardSet.open(shards, "train")
    assert isinstance(samples._entries.base, np.memmap)
    assert len(pickle.dumps(samples)) < 5000
    assert pickle.loads(pickle.dumps(samples)).read(3) == samples.read(3)
    assert samples.sha256 == ShardSet.open(copy, "train").sha256
    assert check(shards) == []


def test_foreign_tars(tmp_path: Path, make_tar: Any, make_sample: Any) -> None:
    """As img2dataset names them; keys repeat from tar to tar, and one has directories in its names."""
    for shard in range(2):
        make_tar(tmp_path / f"{shard:05d}.tar", [make_sample(i) for i in range(3)])
    make_tar(tmp_path / "00002.tar", [("../../etc/x", {"txt": b"harmless"}), ("/etc/y", {"txt": b"harmless"})])
    (tmp_path / "00000_stats.json").write_text("{}")
    assert build_index(tmp_path)["train"].samples == 8
    samples = ShardSet.open(tmp_path, "train")
    keys = [samples.read(i).key for i in range(8)]
    assert keys[:4] == ["00000/000000", "00000/000001", "00000/000002", "00001/000000"]
    assert keys[6:] == ["00002/../../etc/x", "00002//etc/y"]
    assert samples.keys.tolist() == [key_hash(key) for key in keys]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0000{i}" + e for i, e in
        [(0, ".tar"), (0, "_stats.json"), (1, ".tar"), (2, ".tar")]] + ["index"]  # fmt: skip


def test_splits_come_from_names(tmp_path: Path, make_tar: Any, make_sample: Any) -> None:
    for name in ("cc3m-val-0000.tar", "test-000000.tar", "test-000001.tar", "other.tar"):
        make_tar(tmp_path / name, [make_sample(len(name))] if name != "test-000001.tar" else [make_sample(1)])
    assert {name: index.samples for name, index in build_index(tmp_path).items()} == {
        "cc3m-val": 1,
        "test": 2,
        "train": 1,
    }
    with pytest.raises(ValueError, match="did you mean 'test'"):
        ShardSet.open(tmp_path, "tset")
    with pytest.raises(ValueError, match="did you mean 'test'"):
        build_index(tmp_path, "tests")


HEADER = 512


def cut_at(where: str) -> Any:
    def damage(path: Path) -> int:
        """Cut in the seventh sample (number 6); returns how many samples the rest may have lost."""
        with tarfile.open(path) as tar:
            member = tar.getmember("000006.flac")
        size = {
            "header": member.offset + 100,
            "data": member.offset_data + 100,
            "end": member.offset_data + -(-member.size // 512) * 512,
        }[where]
        with open(path, "r+b") as file:
            file.truncate(size)
        return 4

    return damage


def bad_checksum(path: Path) -> int:
    with tarfile.open(path) as tar:
        offset = tar.getmember("000006.flac").offset
    data = bytearray(path.read_bytes())
    data[offset + 110] ^= 1
    path.write_bytes(data)
    return 1


def changed_data(path: Path) -> int:
    with tarfile.open(path) as tar:
        offset = tar.getmember("000006.png").offset_data
    data = bytearray(path.read_bytes())
    data[offset + 30] ^= 1
    path.write_bytes(data)
    return 1


def empty(path: Path) -> int:
    path.write_bytes(b"")
    return 10


def gone(path: Path) -> int:
    path.unlink()
    return 10


DAMAGES = {
    "cut at a header": cut_at("header"),
    "cut inside data": cut_at("data"),
    "cut at a member's end": cut_at("end"),
    "bad checksum": bad_checksum,
    "zero bytes": empty,
    "missing": gone,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_or_recorded(copy: Path, damage: Any) -> None:
    lost = damage(copy / "train-000000.tar")
    before = (copy / "index" / "train.npy").read_bytes()
    with pytest.raises(ShardError, match=r"train-000000\.tar.*byte \d+") as caught:
        build_index(copy)
    assert (copy / "index" / "train.npy").read_bytes() == before
    assert not list(copy.glob("index/.*"))

    index = build_index(copy, tolerate=True)["train"]
    assert index.faults == caught.value.faults
    samples = ShardSet.open(copy, "train")
    used = [samples.read(i).key for i in range(len(samples))]
    whole = [f"{i:06d}" for i in range(20)]
    # Every sample that is whole is used; none of which a member may be lost is.
    assert used == ([key for key in whole if key != "000006"] if lost == 1 else whole[: 10 - lost] + whole[10:])
    assert all(samples.read(i).members.keys() == {"png", "flac", "txt", "json"} for i in range(len(samples)))
    assert [fault.key for fault in samples.faults] == (["000006"] if lost < 10 else [""])
    assert [fault.stage for fault in check(copy)] == ["index"]


@pytest.mark.parametrize("damage", [*DAMAGES.values(), changed_data], ids=[*DAMAGES, "changed data"])
def test_damage_after_indexing_is_counted_by_sample(copy: Path, damage: Any) -> None:
    lost = damage(copy / "train-000000.tar")
    samples = ShardSet.open(copy, "train")
    used, quarantined = [], []
    for i in range(len(samples)):
        try:
            used.append(samples.read(i).key)
        except SampleError as error:
            quarantined.append(samples.fault(i, error).key)
    assert len(set(used)) + len(set(quarantined)) == 20
    assert len(quarantined) == lost
    if lost == 1:
        assert quarantined == ["000006"]
    by_key = [fault.key for fault in check(copy) if fault.key]
    assert by_key == quarantined
    assert any(not fault.key and "not the one that was indexed" in fault.error for fault in check(copy)) == (
        damage is not gone
    )


def test_members_that_do_not_lie_together(tmp_path: Path, make_tar: Any) -> None:
    parts = [("a", {"txt": b"1"}), ("b", {"txt": b"2"}), ("a", {"json": b"{}"}), ("c", {"txt": b"3"})]
    make_tar(tmp_path / "train-000000.tar", parts)
    with pytest.raises(ShardError, match="do not lie together"):
        build_index(tmp_path)
    assert build_index(tmp_path, tolerate=True)["train"].samples == 2


def test_a_missing_number_is_a_missing_shard(tmp_path: Path, make_tar: Any, make_sample: Any) -> None:
    for number in (0, 2):
        make_tar(tmp_path / f"train-{number:06d}.tar", [make_sample(number)])
    with pytest.raises(ShardError, match=r"train-000001\.tar, byte 0: the shard is missing"):
        build_index(tmp_path)


def test_storage_errors_are_retried_then_fatal(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []
    real = os.pread

    def failing(descriptor: int, size: int, offset: int) -> bytes:
        attempts.append(offset)
        if len(attempts) <= failures:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, size, offset)

    monkeypatch.setattr("mmalign.data.shardset._RETRY_DELAYS_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "pread", failing)
    failures, samples = 3, ShardSet.open(shards, "train")
    assert samples.read(5).key == "000005"
    attempts.clear()
    failures = 10**9
    with pytest.raises(OSError, match=r"train-000000\.tar at byte .* 4 attempts") as caught:
        samples.read(6)
    assert caught.value.errno == errno.EIO
    assert len(attempts) == 4


def test_a_shard_that_vanishes_during_the_run_is_fatal(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.data.shardset._RETRY_DELAYS_SECONDS", (0.0,))
    samples = ShardSet.open(copy, "train")
    (copy / "train-000001.tar").unlink()
    with pytest.raises(OSError, match=r"train-000001\.tar"):
        samples.read(15)


def test_limits_come_before_reading(shards: Path) -> None:
    samples = ShardSet.open(shards, "train", Limits(max_sample_bytes=100))
    with pytest.raises(SampleError, match="the limit is 100"):
        samples.read(0)
    samples = ShardSet.open(shards, "train", Limits(max_member_bytes=600))
    with pytest.raises(SampleError, match="the limit is 600"):
        samples.read(0)


@pytest.mark.parametrize(
    "url",
    ["pipe:touch canary", "https://x.org/a.tar", "file:///etc", "s3://b/c", "hf://d", "gs:b", "PIPE:touch canary"],
)
def test_urls_and_commands_are_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPEN_REWRITE", "/=pipe:touch canary;")
    for action in (build_index, lambda path: ShardSet.open(path, "train"), check):
        with pytest.raises(ValueError, match="only local directories are read"):
            action(url)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["../x.tar", "/etc/x.tar", "pipe:touch canary.tar", "a\\b.tar", ".x.tar", "x.zip", ".."]
)
def test_an_index_names_plain_files_only(name: str, copy: Path) -> None:
    with pytest.raises(ValueError, match="no plain file name"):
        Shard(name, 1, "", 1)
    path = copy / "index" / "train.json"
    described = json.loads(path.read_text())
    described["shards"][0]["name"] = name
    path.write_text(json.dumps(described))
    for action in (lambda: ShardSet.open(copy, "train"), lambda: build_index(copy)):
        with pytest.raises(ValueError, match="no plain file name"):
            action()


def test_a_damaged_index_is_refused(copy: Path) -> None:
    path = copy / "index" / "train.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"differ from their hash; make the index anew"):
        ShardSet.open(copy, "train")
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="make the index anew"):
        ShardSet.open(copy, "train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="mmalign data index"):
        ShardSet.open(copy, "train")


def test_a_pipe_named_tar_does_not_hang(copy: Path) -> None:
    os.remove(copy / "train-000000.tar")
    os.mkfifo(copy / "train-000000.tar")
    with pytest.raises(ValueError, match="no regular file"):
        ShardSet.open(copy, "train")
    with pytest.raises(ValueError, match="no regular file"):
        build_index(copy)


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_named_tar_is_refused(copy: Path, tmp_path: Path, inside: bool) -> None:
    target = (copy if inside else tmp_path) / "elsewhere.bin"
    os.rename(copy / "train-000000.tar", target)
    os.symlink(target, copy / "train-000000.tar")
    for use in (lambda: ShardSet.open(copy, "train"), lambda: build_index(copy)):
        with pytest.raises(ValueError, match=r"train-000000\.tar is a symbolic link") as refused:
            use()
        assert "index anew" not in str(refused.value)


def test_a_tar_that_became_a_link_after_it_was_opened_is_not_followed(copy: Path, tmp_path: Path) -> None:
    opened = ShardSet.open(copy, "train")
    os.rename(copy / "train-000000.tar", tmp_path / "elsewhere.tar")
    os.symlink(tmp_path / "elsewhere.tar", copy / "train-000000.tar")
    with pytest.raises(OSError, match=r"train-000000\.tar"):
        opened.read(0)


def test_a_directory_of_shards_may_be_a_link(copy: Path, tmp_path: Path) -> None:
    os.symlink(copy, tmp_path / "link")
    assert build_index(tmp_path / "link")["train"].samples == len(ShardSet.open(tmp_path / "link", "train"))
    assert ShardSet.open(tmp_path / "link", "train").read(0).members
