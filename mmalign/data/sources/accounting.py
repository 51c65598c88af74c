"""What a source leaves out or changes, counted and listed by reason, so that nothing disappears unsaid."""

from collections import defaultdict
from typing import Any


class Account:
    """Names by reason. Saying the same thing twice counts once: drawing a split again changes nothing."""

    def __init__(self) -> None:
        self._items: dict[str, set[str]] = defaultdict(set)

    def note(self, reason: str, name: str) -> None:
        self._items[reason].add(name)

    def count(self, reason: str) -> int:
        return len(self._items[reason]) if reason in self._items else 0

    def as_json(self) -> dict[str, Any]:
        """{reason: {"count": n, "items": sorted names}}, by reason."""
        return {reason: {"count": len(items), "items": sorted(items)} for reason, items in sorted(self._items.items())}
