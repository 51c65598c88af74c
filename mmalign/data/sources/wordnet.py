"""Plain English sentences about everything: the examples that lexicographers gave for the meanings of words in WordNet.

A line of `data.POS` that is no comment ends with ` | definition; "an example"; "another"`. Every example is a sample.

Left out, and counted in the report: examples of fewer than `min_words` words, and those that were there before, up to
case and punctuation. All examples of a meaning are in one split.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mmalign import assets
from mmalign.assets.hashing import file_sha256, tree_sha256
from mmalign.data.sample import RawSample
from mmalign.data.sources.base import Source, hashed_split, json_member, split_shares

_PARTS_OF_SPEECH = ("adj", "adv", "noun", "verb")
_EXAMPLE = re.compile(r'"([^"]+)"')


class WordNet(Source):
    """Example sentences of WordNet 3.0: text only, to replay or to distil on.

    Args:
        directory: that holds `data.noun` and its like; None takes the asset `wordnet`.
        min_words: of a sentence.
        val_share: of the meanings, likewise test_share.
        seed: another seed gives another division.
    """

    name = "wordnet"
    licence = "WordNet-3.0"
    description = "Text only: the example sentences of WordNet 3.0, split by meaning."

    def __init__(
        self,
        directory: Path | None = None,
        min_words: int = 4,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
    ):
        if min_words < 1:
            raise ValueError(f"min_words is {min_words}, must be at least 1")
        self.directory, self.min_words = directory, min_words
        self.val_share, self.test_share, self.seed = val_share, test_share, seed
        self._shares = split_shares(val_share, test_share)
        self._report: Counter[str] = Counter()

    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    def samples(self, split: str) -> Iterator[RawSample]:
        self.check_split(split)
        for key, text in self._sentences[split].items():
            yield RawSample(key, {"txt": text.encode("utf-8"), "json": json_member({"language": "en"})})

    def provenance(self) -> dict[str, Any]:
        hashes = {f"data.{part}": file_sha256(self._root / f"data.{part}") for part in _PARTS_OF_SPEECH}
        return {"origin": "WordNet", "version": "3.0", "sha256": tree_sha256(hashes)}

    def report(self) -> dict[str, Any]:
        self._sentences  # noqa: B018  # reading counts
        return dict(sorted(self._report.items()))

    @cached_property
    def _root(self) -> Path:
        root = Path(self.directory) if self.directory is not None else assets.path("wordnet")
        for part in _PARTS_OF_SPEECH:
            if not (root / f"data.{part}").is_file():
                raise FileNotFoundError(f"{root} has no file data.{part}")
        return root

    @cached_property
    def _sentences(self) -> dict[str, dict[str, str]]:
        """By split and key."""
        found: dict[str, dict[str, str]] = {split: {} for split in self._shares}
        seen: set[str] = set()
        for meaning, examples in self._meanings():
            split = hashed_split(meaning, self._shares, salt=f"wordnet/{self.seed}")
            for i, example in enumerate(examples):
                words = re.findall(r"\w+", example.lower())
                normal = " ".join(words)
                if len(words) < self.min_words:
                    self._report[f"examples of fewer than {self.min_words} words"] += 1
                elif normal in seen:
                    self._report["examples repeated"] += 1
                else:
                    found[split][f"{meaning}_{i}"] = example
                seen.add(normal)
        return found

    def _meanings(self) -> Iterator[tuple[str, list[str]]]:
        """Name and examples of every meaning, in a fixed order."""
        for part in _PARTS_OF_SPEECH:
            with open(self._root / f"data.{part}", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if line[0].isdigit() and "|" in line:
                        gloss = line.split("|", 1)[1]
                        yield f"{part}_{line[:8]}", [" ".join(e.split()) for e in _EXAMPLE.findall(gloss)]
