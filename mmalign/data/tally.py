"""Counting what a shard directory holds, from the members' headers; nothing is decoded."""

import io
from dataclasses import dataclass, field
from typing import Any

from mmalign.data.sample import DEFAULT_MEMBERS, RawSample

_KINDS = {extension: kind for kind, members in DEFAULT_MEMBERS.items() for extension in members.split("|")}


@dataclass
class Range:
    """Smallest, largest, sum and number of some quantity."""

    low: int | float = float("inf")
    high: int | float = float("-inf")
    total: int | float = 0
    count: int = 0

    def add(self, value: int | float) -> None:
        self.low, self.high = min(self.low, value), max(self.high, value)
        self.total, self.count = self.total + value, self.count + 1

    def to_dict(self) -> dict[str, int | float]:
        mean = self.total / self.count
        return {"min": round(self.low, 3), "mean": round(mean, 3), "max": round(self.high, 3)}


@dataclass
class MemberTally:
    """One kind of member over the samples of a split: "png", "speech.*.flac" (all languages) or "captions"."""

    kind: str
    count: int = 0
    samples: int = 0
    size_bytes: int = 0
    unreadable: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)

    def add(self, data: bytes, language: str = "") -> None:
        self.count, self.size_bytes = self.count + 1, self.size_bytes + len(data)
        if language:
            self.languages[language] = self.languages.get(language, 0) + 1
        try:
            measures = _measure(self.kind, data)
        except (OSError, RuntimeError, ValueError):
            # The card counts what it cannot read; `mmalign data check` says which and why.
            self.unreadable += 1
            return
        for name, value in measures.items():
            self.ranges.setdefault(name, Range()).add(value)

    def to_dict(self) -> dict[str, Any]:
        described: dict[str, Any] = {"kind": self.kind, "count": self.count, "samples": self.samples}
        described["bytes"] = self.size_bytes
        if self.unreadable:
            described["unreadable"] = self.unreadable
        if self.languages:
            described["languages"] = dict(sorted(self.languages.items()))
        described |= {name: values.to_dict() for name, values in self.ranges.items()}
        if "seconds" in self.ranges:
            described["total_seconds"] = round(self.ranges["seconds"].total, 3)
        return described


class Tally:
    """Counts the samples of one split from their headers; nothing is decoded."""

    def __init__(self) -> None:
        self.samples = 0
        self.members: dict[str, MemberTally] = {}

    def add(self, sample: RawSample) -> None:
        self.samples += 1
        touched = set()
        for extension, data in sample.members.items():
            name, language, kind = _family(extension)
            touched.add(name)
            self._member(name, kind).add(data, language)
        for language, captions in self._captions(sample).items():
            touched.add("captions")
            for caption in captions:
                self._member("captions", "text").add(caption.encode("utf-8"), language)
        for name in touched:
            self.members[name].samples += 1

    def to_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "members": {name: tally.to_dict() for name, tally in self.members.items()}}

    def _member(self, name: str, kind: str) -> MemberTally:
        return self.members.setdefault(name, MemberTally(kind))

    @staticmethod
    def _captions(sample: RawSample) -> dict[str, list[str]]:
        try:
            return sample.metadata.get("captions", {})
        except ValueError:  # counted nowhere else, but `mmalign data check` reports the json member
            return {}


def _family(extension: str) -> tuple[str, str, str]:
    """Name of the tally, language and kind: "speech.fr.flac" is ("speech.*.flac", "fr", "audio")."""
    parts = extension.split(".")
    kind = _KINDS.get(parts[-1].lower(), "other")
    if len(parts) == 3:
        return f"{parts[0]}.*.{parts[2]}", parts[1], kind
    return extension, "", kind


def _measure(kind: str, data: bytes) -> dict[str, int | float]:
    if kind == "image":
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            return {"width_pixels": image.width, "height_pixels": image.height}
    if kind == "audio":
        import soundfile

        info = soundfile.info(io.BytesIO(data))
        return {"seconds": info.frames / info.samplerate, "sample_rate_hz": info.samplerate, "channels": info.channels}
    if kind == "text":
        return {"characters": len(data.decode("utf-8"))}
    return {}
