"""A sample as it stands in a shard, and how a modality picks members out of it."""

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

DEFAULT_MEMBERS = {
    "image": "png|jpg|jpeg|webp",
    "audio": "flac|wav|ogg|mp3",
    "text": "txt",
    "array": "npy",
}
"""By kind of preprocessing: what a modality reads when its YAML entry names no members."""

_CAPTIONS = re.compile(r"captions\[(?P<language>[^\]]+)\]")


@dataclass(frozen=True)
class Variant:
    """One of possibly several members that can stand for a modality of a sample.

    `name` is the member's extension ("png", "speech.fr.flac") or "captions[fr]#0"; `language` a code or "".
    """

    name: str
    language: str
    data: bytes


@dataclass(frozen=True)
class SampleInfo:
    """What is known of a sample for one modality, without the contents of its members.

    Attributes:
        key: its own, without the data set's name.
        group: see RawSample.
        variants: (name, language) of each, in the order of RawSample.variants.
    """

    key: str
    group: str
    variants: list[tuple[str, str]]


@dataclass(frozen=True)
class RawSample:
    """Members of one sample by extension, undecoded, in the order of the tar: {"png": …, "txt": …, "json": …}.

    The WebDataset convention holds: a member `KEY.EXTENSION` is split at the first dot of its base name.
    `json`, where there is one, is an object; mmalign reads of it `group` (a string: samples with the same one are
    positives of each other) and `captions` ({language: [caption, …]}); everything else is the data set's own.
    """

    key: str
    members: dict[str, bytes]
    shard: str = ""
    offset: int = 0
    _metadata: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """The parsed `json` member; empty without one.

        Raises:
            ValueError: it is no JSON object in UTF-8.
        """
        if not self._metadata and "json" in self.members:
            parsed = json.loads(self.members["json"].decode("utf-8"))
            if not isinstance(parsed, dict):
                raise ValueError("the json member is not an object")
            self._metadata.update(parsed)
        return self._metadata

    @property
    def group(self) -> str:
        return str(self.metadata.get("group", self.key))

    def variants(self, members: str) -> list[Variant]:
        """The members that match a pattern, in a fixed order.

        `members` is a list of alternatives separated by "|". Each is a glob over extensions ("png", "speech.*.flac";
        what the star matches is the language) or "captions[fr]" / "captions[*]", which reads the json's captions.
        """
        found: list[Variant] = []
        for alternative in members.split("|"):
            if match := _CAPTIONS.fullmatch(alternative):
                captions = self.metadata.get("captions", {})
                for language in sorted(captions):
                    if fnmatchcase(language, match["language"]):
                        found += [
                            Variant(f"captions[{language}]#{i}", language, text.encode("utf-8"))
                            for i, text in enumerate(captions[language])
                        ]
                continue
            prefix, star, suffix = alternative.partition("*")
            for name in sorted(self.members):
                if fnmatchcase(name.lower(), alternative):
                    language = name[len(prefix) : len(name) - len(suffix)] if star else ""
                    found.append(Variant(name, language, self.members[name]))
        return found
