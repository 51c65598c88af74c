"""Which items must stay on one side of a split because they share something."""

import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping


def connected(keys: Mapping[str, Iterable[Hashable]]) -> dict[str, str]:
    """For every item, the first (as text) of those connected to it by shared keys, directly or through others."""
    parent = {item: item for item in keys}

    def root(item: str) -> str:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    owner: dict[Hashable, str] = {}
    for item, shared in keys.items():
        for key in shared:
            first, second = sorted((root(item), root(owner.setdefault(key, item))))
            parent[second] = first
    return {item: root(item) for item in keys}


def plain_text(text: str) -> str:
    """Text for comparing captions: NFKC, case folded, without punctuation, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", folded.replace("'", "").replace("’", "")).split())


def plain_english(text: str) -> str:
    """`plain_text` without a leading article: "A frog." and "The frog" are the same caption."""
    plain = plain_text(text)
    return re.sub(r"^(an?|the|some) (?=\S)", "", plain)
