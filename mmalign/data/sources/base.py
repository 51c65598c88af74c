"""What a data source is: it yields samples by split, in a fixed order, and accounts for what it left out."""

import hashlib
import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mmalign.data.sample import RawSample


class Source(ABC):
    """Turns one data set into samples that `mmalign.data.shards.build` writes as a shard directory.

    The typed constructor is the schema of the settings; every argument is kept as an attribute of its own name, so that
    the card can state it. Yielding is deterministic: the same source and settings give the same samples in one order.

    Attributes:
        name: short name; the title of the card.
        licence: the licence of the *data*, as an SPDX identifier where there is one.
        description: one to three sentences for the card.
        execution_settings: arguments that say how to build, not what; they change no byte and stay off the card.
    """

    name: str
    licence: str
    description: str
    execution_settings: ClassVar[tuple[str, ...]] = ("workers",)

    @abstractmethod
    def splits(self) -> list[str]:
        """Names of the splits, training first."""

    @abstractmethod
    def samples(self, split: str) -> Iterator[RawSample]:
        """The samples of one split. Keys are unique over all splits.

        Raises:
            ValueError: there is no such split.
        """

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Where the data come from: names, versions, addresses and SHA-256 of the raw files (no local paths)."""

    def report(self) -> dict[str, Any]:
        """Counts of what cleaning changed or left out, by reason; complete once every split has been drawn."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values; of a path only its last component."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in self.execution_settings]
        return {name: _plain(getattr(self, name)) for name in names if hasattr(self, name)}

    def check_split(self, split: str) -> None:
        """Refuse a split that the source does not have (ValueError)."""
        if split not in self.splits():
            raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits())}")


def json_member(metadata: Mapping[str, Any]) -> bytes:
    """A sample's `json` member with fixed bytes: UTF-8, sorted keys, no spaces."""
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")


def hashed_split(key: str, shares: Mapping[str, float], salt: str = "") -> str:
    """The split of an item by a keyed hash of its name: independent of order and of what else there is.

    `shares` are positive numbers in a fixed order; an item's split changes only when they or the salt do. Give items
    that must stay on one side (near-duplicates) the same `key`.
    """
    digest = hashlib.blake2b(key.encode("utf-8"), key=salt.encode("utf-8")[:64], digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64 * sum(shares.values())
    for split, share in shares.items():
        if point < share:
            return split
        point -= share
    return list(shares)[-1]


def split_shares(val_share: float, test_share: float) -> dict[str, float]:
    """Shares of train, val and test, for `hashed_split`.

    Raises:
        ValueError: unless both are positive and leave something for training.
    """
    if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
        raise ValueError(f"val_share {val_share} and test_share {test_share} must be positive and leave a training set")
    return {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}


def key_from(text: str, limit: int = 60) -> str:
    """A valid key of at most `limit` characters made of any name: ASCII letters, digits, `-` and `_`.

    Where anything had to be replaced or cut, a hash of the name is added, so that different names keep different keys.
    """
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")
    if key and key == text and len(key) <= limit:
        return key
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=5).hexdigest()
    return f"{key[: limit - 11]}-{digest}".lstrip("-")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
