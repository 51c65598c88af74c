"""The control of an alignment: other shards with the captions of the training split dealt out anew.

Rules:
- what belongs to a caption moves together from sample to sample: the members `txt` and `*.txt` (tags), and in the json
  `captions` and `group`; pictures, recordings and the rest of the json stay where they are;
- nobody keeps the own captions, nor gets those of a sample of the same group;
- other splits are copied as they are.

What stays together (a picture and its recordings) shares its wrong caption, so that two modalities which are both
aligned with captions still come to each other. Where that must not be, use another seed for each.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mmalign.data.card import read_card
from mmalign.data.config import indexed_splits, refuse_url
from mmalign.data.order import keyed_hash
from mmalign.data.sample import RawSample
from mmalign.data.shardset import ShardSet
from mmalign.data.sources.base import Source, json_member

TRAIN = "train"
MOVED_METADATA = ("captions", "group")


class Shuffled(Source):
    """A shard directory whose training pairs are wrong: a model trained on it must end at chance.

    The shards are read when the first sample is drawn, so that a configuration may build them just before.

    Args:
        shards: a shard directory with a data card and a split called "train".
        seed: another one deals the captions out in another way.
    """

    name = "shuffled"
    description = (
        "A control: the captions of the training split belong to other samples than those that they stand with. "
        "Other splits are as they were."
    )

    def __init__(self, shards: str, seed: int = 0) -> None:
        refuse_url(shards)
        self.shards = Path(shards)
        self.seed = seed

    @cached_property
    def licence(self) -> str:  # type: ignore[override]
        """That of the shards."""
        return str(self._card["licence"])

    @cached_property
    def _card(self) -> dict[str, Any]:
        return read_card(self.shards)

    def splits(self) -> list[str]:
        found = indexed_splits(self.shards)
        if TRAIN not in found:
            raise ValueError(f"{self.shards} has no split {TRAIN!r} to shuffle; it has {', '.join(found)}")
        return [TRAIN, *(split for split in self._card["splits"] if split in found and split != TRAIN)]

    def samples(self, split: str) -> Iterator[RawSample]:
        self.check_split(split)
        shards = ShardSet.open(self.shards, split)
        donors = dealt([shards.read(i).group for i in range(len(shards))], self.seed) if split == TRAIN else None
        for index in range(len(shards)):
            sample = shards.read(index)
            yield sample if donors is None else with_captions_of(sample, shards.read(donors[index]))

    def provenance(self) -> dict[str, Any]:
        shards = {split: ShardSet.open(self.shards, split).sha256 for split in self.splits()}
        return {"shards": self._card["name"], "sha256_of_shards": shards, "origin": self._card["provenance"]}


def dealt(groups: list[str], seed: int) -> list[int]:
    """For each sample the one whose captions it gets: a permutation in which nobody gets those of the own group.

    Raises:
        ValueError: there is none, because more than half of the samples are of one group.
    """
    order = sorted(range(len(groups)), key=lambda i: (keyed_hash("shuffled", seed, i), i))
    donors = list(range(len(groups)))
    for place, index in enumerate(order):
        donors[index] = order[(place + 1) % len(order)]
    for i in range(len(groups)):
        if groups[donors[i]] != groups[i]:
            continue
        for j in order:
            if groups[donors[j]] != groups[i] and groups[donors[i]] != groups[j]:
                donors[i], donors[j] = donors[j], donors[i]
                break
        else:
            raise ValueError(f"too many samples are of the group {groups[i]!r}: their captions cannot be dealt out")
    return donors


def with_captions_of(sample: RawSample, donor: RawSample) -> RawSample:
    """The sample with the donor's captions in place of its own; both members and metadata keep their order."""
    members = {name: data for name, data in sample.members.items() if not _is_caption(name)}
    members |= {name: data for name, data in donor.members.items() if _is_caption(name)}
    if "json" in members or donor.metadata:
        metadata = {key: value for key, value in sample.metadata.items() if key not in MOVED_METADATA}
        moved = {key: donor.metadata[key] for key in MOVED_METADATA if key in donor.metadata}
        members["json"] = json_member(metadata | {"group": donor.group} | moved)
    return RawSample(sample.key, members)


def _is_caption(name: str) -> bool:
    return name == "txt" or name.endswith(".txt")
