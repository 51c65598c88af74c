"""One data set as a stream or an evaluation reads it: its samples, and the members that stand for each modality."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmalign.data.config import ShardData, suggestion
from mmalign.data.decode import EXTENSIONS, decode
from mmalign.data.faults import Fault, Limits, SampleError
from mmalign.data.order import keyed_hash
from mmalign.data.sample import DEFAULT_MEMBERS, RawSample, SampleInfo, Variant
from mmalign.data.select import variants_in
from mmalign.data.shardset import ShardSet
from mmalign.encoders.base import Preprocess

_LOOKED_AT = 10_000
"""Samples of a larger split in which a member is looked for, spread over it evenly."""


_DECODED = 100
"""Samples that may fail to decode, one after another, before all are given up."""


def check_members(data: ShardData, limits: Limits = Limits()) -> None:  # noqa: B008 (frozen)
    """Every pattern must stand for something: a run on a misspelt one would train, and learn nothing from it.

    Reads samples until each pattern has been met by a member that can be decoded: mostly one.

    Raises:
        FileNotFoundError: no such directory, or it has no index.
        ValueError: no such split, or a pattern that no sample answers to, or whose members cannot be used; names what
            the first sample holds, or why the last one is refused.
    """
    samples = ShardSet.open(data.shards, data.split, limits)
    count = len(samples) if data.limit is None else min(data.limit, len(samples))
    looked_at = min(count, _LOOKED_AT)
    missing, held = dict(data.modalities or {}), ""
    refused: dict[str, list[SampleError]] = {name: [] for name in missing}
    for i in range(looked_at):
        if not missing:
            return
        try:
            sample = samples.read(i * count // looked_at)
            found = {name: variants_in(sample, given, limits) for name, given in missing.items()}
        except SampleError:
            continue
        for name, variants in found.items():
            try:
                for variant in variants:
                    _decode(variant, limits)
                    missing.pop(name, None)
            except SampleError as error:
                refused[name].append(error)
        if any(len(refused[name]) >= _DECODED for name in missing):
            break
        held = held or f"{sample.key} holds {', '.join(sorted(sample.members))}"
    for name in missing:
        if refused[name]:
            last = refused[name][-1]
            where = " (see limits)" if "the limit is" in str(last) else ""
            raise ValueError(
                f"modalities.{name}: of {len(refused[name])} samples of {data.shards} none can be used: {last}{where}"
            )
    for name, given in missing.items():
        if held:
            raise ValueError(f"modalities.{name}: {given!r} is in none of {looked_at} samples of {data.shards}; {held}")


def _decode(variant: Variant, limits: Limits) -> None:
    extension = variant.name.rpartition(".")[2].lower()
    kind = "text" if variant.name.startswith("captions[") else None
    kind = kind or next((kind for kind, known in EXTENSIONS.items() if extension in known), None)
    if kind is not None:
        decode(kind, variant.name, variant.data, limits)


@dataclass(frozen=True)
class BoundData:
    """An opened data set.

    Attributes:
        name: stands before every key: "NAME/KEY".
        data: what the YAML says.
        samples: all of the split.
        count: how many of them are used: the first `count`.
        patterns: the members of each modality (see RawSample.variants).
    """

    name: str
    data: ShardData
    samples: ShardSet
    count: int
    patterns: dict[str, str]

    @classmethod
    def open(cls, name: str, data: ShardData, preprocess: Mapping[str, Preprocess], limits: Limits) -> "BoundData":
        """Open and check.

        Raises:
            FileNotFoundError: no such directory, or it has no index.
            ValueError: no such split or modality, or no samples.
        """
        samples = ShardSet.open(data.shards, data.split, limits)
        if not len(samples):
            raise ValueError(f"data {name!r}: the split {data.split!r} of {data.shards} is empty")
        if data.modalities is None:
            patterns = {modality: DEFAULT_MEMBERS[p.kind] for modality, p in preprocess.items()}
        else:
            patterns = dict(data.modalities)
            for modality in patterns:
                if modality not in preprocess:
                    hint = suggestion(modality, sorted(preprocess))
                    raise ValueError(f"data {name!r}: the model has no encoder {modality!r}{hint}")
        count = len(samples) if data.limit is None else min(data.limit, len(samples))
        return cls(name, data, samples, count, patterns)

    @classmethod
    def for_modality(
        cls, name: str, data: ShardData, modality: str, preprocess: Preprocess, limits: Limits
    ) -> "BoundData":
        """Open for one modality alone; where `data` does not bind it, all samples lack it."""
        opened = cls.open(name, replace(data, modalities=None), {modality: preprocess}, limits)
        if data.modalities is None:
            return opened
        return replace(opened, data=data, patterns={modality: data.modalities.get(modality, "")})

    def key(self, sample: RawSample | SampleInfo) -> str:
        return f"{self.name}/{sample.key}"

    def group(self, group: str) -> int:
        """A number of 63 bits, the same for samples of the data set that are positives of each other.

        Args:
            group: of the sample; see `mmalign.data.select.group_of`.
        """
        return keyed_hash("group", self.name, group, bits=63)

    @property
    def known_faults(self) -> list[Fault]:
        """What was unusable when the data set was indexed."""
        return [Fault(**fault.to_dict() | {"dataset": self.name}) for fault in self.samples.faults]

    @property
    def description(self) -> dict[str, Any]:
        """All that decides what is read, except where it lies."""
        return {
            "shards": self.samples.sha256,
            "changed": self.samples.changed,
            "split": self.data.split,
            "samples": self.count,
            "modalities": self.patterns,
            "language": self.data.language,
            "replayed": self.data.replayed,
        }
