"""Tars that depend on the samples alone, that other tools read, and that take no dangerous key."""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.data.sample import RawSample
from mmalign.data.shards import build, write_shards
from mmalign.data.sources.base import Source, hashed_split, key_from


def made_up(count: int, start: int = 0) -> list[RawSample]:
    return [
        RawSample(f"s{i}", {"txt": f"text {i}".encode(), "speech.fr.wav": bytes(i), "json": b"{}"})
        for i in range(start, start + count)
    ]


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


class Letters(Source):
    name, licence, description = "letters", "CC0-1.0", "Letters."

    def __init__(self, count: int = 3, root: Path = Path("/data/raw")):
        self.count, self.root = count, root

    def splits(self) -> list[str]:
        return ["train", "test"]

    def samples(self, split: str) -> Iterator[RawSample]:
        self.check_split(split)
        yield from made_up(self.count, start=0 if split == "train" else 1000)

    def provenance(self) -> dict[str, Any]:
        return {"origin": "made up"}


def test_webdataset_and_tarfile_read_what_was_written(tmp_path):
    import webdataset

    samples = made_up(7)
    paths = write_shards(tmp_path, "train", samples, samples_per_shard=3)
    assert [path.name for path in paths] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    read = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
    assert [item["__key__"] for item in read] == [sample.key for sample in samples]
    for item, sample in zip(read, samples, strict=True):
        assert {name: item[name] for name in sample.members} == sample.members
    with tarfile.open(paths[0]) as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == ["s0.txt", "s0.speech.fr.wav", "s0.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_same_samples_give_same_bytes_whatever_was_there(tmp_path):
    for name, count in (("a", 3), ("b", 9)):
        build(Letters(count), tmp_path / name, samples_per_shard=2)
    assert digests(tmp_path / "a") != digests(tmp_path / "b")
    build(Letters(3), tmp_path / "b", samples_per_shard=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_refuses_a_directory_with_foreign_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        build(Letters(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_interrupted_build_leaves_no_half_tar_and_no_card(tmp_path):
    build(Letters(), tmp_path)

    class Breaking(Letters):
        def samples(self, split: str) -> Iterator[RawSample]:
            yield from made_up(3)
            raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        build(Breaking(), tmp_path, samples_per_shard=2)
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]
    build(Letters(), tmp_path)
    assert (tmp_path / "card.json").exists()


@pytest.mark.parametrize("key", ["../x", "a/b", ".x", "a.b", "", "-x", "a\\b", "a\nb", "a\0b", "a ", "~x", "x" * 98])
def test_refuses_dangerous_keys(tmp_path, key):
    with pytest.raises(ValueError, match=r"key|bytes"):
        write_shards(tmp_path, "train", [RawSample(key, {"txt": b""})])
    assert not list(tmp_path.iterdir())


def test_refuses_a_key_twice_also_over_splits(tmp_path):
    with pytest.raises(ValueError, match="'s0' occurs twice"):
        write_shards(tmp_path, "train", [*made_up(3), *made_up(1)], samples_per_shard=2)

    class Same(Letters):
        def samples(self, split: str) -> Iterator[RawSample]:
            yield from made_up(1)

    with pytest.raises(ValueError, match="'s0' occurs twice"):
        build(Same(), tmp_path / "out")


def test_refuses_members_that_the_format_cannot_hold(tmp_path):
    for sample in (RawSample("a", {}), RawSample("a", {"a/b": b""}), RawSample("a", {"": b""})):
        with pytest.raises(ValueError, match="'a'"):
            write_shards(tmp_path, "train", [sample])
    with pytest.raises(ValueError, match="split"):
        write_shards(tmp_path, "a/b", made_up(1))


@given(st.text(), st.text())
def test_any_name_becomes_a_valid_key_of_its_own(first, second):
    from mmalign.data.shards import _KEY

    keys = [key_from(first), key_from(second)]
    assert all(_KEY.fullmatch(key) and len(key) <= 60 for key in keys)
    assert (keys[0] == keys[1]) == (first == second)


def test_hashed_split_keeps_shares_and_neither_order_nor_company_matters():
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    splits = [hashed_split(f"item {i}", shares) for i in range(4000)]
    for split, share in shares.items():
        assert abs(splits.count(split) / 4000 - share) < 0.03
    assert hashed_split("item 17", shares) == splits[17]
    assert [hashed_split(f"item {i}", shares, salt="1") for i in range(4000)] != splits
