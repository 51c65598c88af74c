"""Shuffled pairs: every training caption is elsewhere, none of the right group, and nothing else has moved."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.data.card import read_card
from mmalign.data.sample import RawSample
from mmalign.data.shards import build
from mmalign.data.shardset import ShardSet
from mmalign.data.sources.base import Source, json_member
from mmalign.data.sources.shuffled import Shuffled, dealt
from mmalign.training.compare import read_arms
from mmalign.training.yaml_config import differences


class Made(Source):
    """Sixty training samples, of which every third shares its caption with the one after it; ten to test."""

    name = "made"
    licence = "CC0-1.0"
    description = "Made for a test."

    def splits(self):
        return ["train", "test"]

    def samples(self, split):
        for i in range(60) if split == "train" else range(60, 70):
            caption = f"thing {i - (i % 3 == 1)}"
            metadata = {"group": caption, "captions": {"en": [caption], "fr": [f"chose {i}"]}, "category": f"c{i}"}
            members = {"png": b"picture %d" % i, "txt": caption.encode(), "speech.fr.flac": b"sound %d" % i}
            yield RawSample(f"s{i}", members | {"tags.txt": b"tag %d" % i, "json": json_member(metadata)})

    def provenance(self):
        return {"origin": "made up"}


@pytest.fixture
def original(tmp_path) -> Path:
    return build(Made(), tmp_path / "original")


def read(directory: Path, split: str) -> list[RawSample]:
    shards = ShardSet.open(directory, split)
    return [shards.read(i) for i in range(len(shards))]


def test_captions_move_together_and_to_other_groups(original, tmp_path):
    shuffled = build(Shuffled(str(original)), tmp_path / "shuffled")
    before = {sample.key: sample for sample in read(original, "train")}
    after = read(shuffled, "train")
    assert [sample.key for sample in after] == list(before)
    for sample in after:
        own = before[sample.key]
        assert sample.members["png"] == own.members["png"]
        assert sample.members["speech.fr.flac"] == own.members["speech.fr.flac"]
        assert sample.metadata["category"] == own.metadata["category"]
        assert sample.metadata["group"] != own.metadata["group"]
        number = sample.members["tags.txt"].decode().removeprefix("tag ")
        donor = before[f"s{number}"]
        for name in ("txt", "tags.txt"):
            assert sample.members[name] == donor.members[name]
        assert sample.metadata["captions"] == donor.metadata["captions"]
        assert sample.metadata["group"] == donor.metadata["group"]
    texts = [Counter(sample.members["tags.txt"] for sample in some) for some in (after, before.values())]
    assert texts[0] == texts[1]


def test_other_splits_are_the_same_bytes_and_a_seed_decides_all(original, tmp_path):
    one, again, other = (build(Shuffled(str(original), seed), tmp_path / f"{i}") for i, seed in enumerate((0, 0, 1)))

    def tar(directory: Path, split: str) -> str:
        return hashlib.sha256((directory / f"{split}-000000.tar").read_bytes()).hexdigest()

    assert tar(one, "test") == tar(original, "test")
    assert tar(one, "train") == tar(again, "train")
    assert len({tar(directory, "train") for directory in (one, other, original)}) == 3


def test_the_card_says_what_it_is(original, tmp_path):
    card = read_card(build(Shuffled(str(original)), tmp_path / "shuffled"))
    assert card["licence"] == "CC0-1.0"
    assert card["provenance"]["shards"] == "made"
    assert card["provenance"]["origin"] == {"origin": "made up"}
    assert "other samples" in card["description"]
    assert json.dumps(card).count(str(tmp_path)) == 0


def test_nothing_is_read_before_it_is_needed(tmp_path):
    source = Shuffled(str(tmp_path / "comes-later"))
    with pytest.raises(FileNotFoundError, match="comes-later"):
        source.splits()


def test_the_shipped_control_differs_in_its_data_alone():
    arms = read_arms(Path(__file__).parents[3] / "configs" / "tuxpaint.yaml", {}).configs
    for (arm, seed), config in arms.items():
        aligned = arms["aligned", seed]
        if arm == "shuffled":
            changed = set(differences(aligned, config)) - {"arm", "name"}
            trained = {key for key in changed if key.startswith("stages.")}
            assert all(re.fullmatch(r"stages\.\w+\.data\.\w+\.shards", key) for key in trained)
            assert len(trained) == sum(len(stage["data"]) for stage in config["stages"].values())
            rest = changed - trained - {"evaluation.linear_map.init_args.train"}
            assert all(re.fullmatch(r"sources\.data/\w+-shuffled(-again)?", key) for key in rest)
            assert config["stages"]["pictures"]["data"]["stamps"]["shards"] not in {
                data["shards"] for data in config["stages"]["speech"]["data"].values()
            }
            assert not any(
                "shuffled" in json.dumps(config["evaluation"][name]["init_args"]["data"])
                for name in config["evaluation"]
            )
    assert {arm for arm, _ in arms} == {"aligned", "shuffled"}


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 3))
def test_a_permutation_without_own_groups_wherever_there_is_one(numbers, seed):
    groups = [str(number) for number in numbers]
    if 2 * max(Counter(groups).values()) > len(groups):
        with pytest.raises(ValueError, match="cannot be dealt out"):
            dealt(groups, seed)
        return
    donors = dealt(groups, seed)
    assert sorted(donors) == list(range(len(groups)))
    assert all(groups[donor] != groups[i] for i, donor in enumerate(donors))
