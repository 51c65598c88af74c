"""The data card of a shard directory: what is in it, whence, and what was left out; as JSON and as Markdown."""

import json
import os
from pathlib import Path
from typing import Any

from mmalign.data.sources.base import Source
from mmalign.data.tally import Tally


def write_card(directory: Path, source: Source, tallies: dict[str, Tally], samples_per_shard: int) -> dict[str, Any]:
    """Write `README.md` and, last, `card.json`; return the card.

    Args:
        directory: with its tars and its index.
        tallies: by split, of all samples written.
    """
    card = {
        "format": 1,
        "name": source.name,
        "description": source.description,
        "licence": source.licence,
        "provenance": source.provenance(),
        "settings": source.settings() | {"samples_per_shard": samples_per_shard},
        "splits": {split: tally.to_dict() for split, tally in tallies.items()},
        "report": source.report(),
        "shards": _shards(directory, list(tallies)),
    }
    _write(directory / "README.md", to_markdown(card))
    _write(directory / "card.json", json.dumps(card, ensure_ascii=False, indent=2) + "\n")
    return card


def foreign_card(directory: Path) -> dict[str, Any]:
    """A card of indexed tars that others wrote: what can be counted, and nothing about where they come from.

    Raises:
        FileNotFoundError: there is no index.
    """
    from mmalign.data.faults import SampleError
    from mmalign.data.shardset import ShardSet

    tallies, unusable = {}, {}
    for path in sorted((directory / "index").glob("*.json")):
        split = path.stem
        samples, tallies[split] = ShardSet.open(directory, split), Tally()
        unusable[split] = len(samples.faults)
        for index in range(len(samples)):
            try:
                tallies[split].add(samples.read(index))
            except SampleError:
                unusable[split] += 1
    if not tallies:
        raise FileNotFoundError(f"{directory} has neither a card nor an index; run `mmalign data index {directory}`")
    return {
        "name": directory.name,
        "description": "Shards that mmalign did not build.",
        "licence": "not stated",
        "provenance": {"origin": "not stated"},
        "settings": {},
        "splits": {split: tally.to_dict() for split, tally in tallies.items()},
        "report": {"unusable samples": unusable} if any(unusable.values()) else {},
        "shards": _shards(directory, list(tallies)),
    }


def read_card(directory: Path | str) -> dict[str, Any]:
    """The card of a directory that `mmalign data build` wrote.

    Raises:
        FileNotFoundError: it has none: the build was not completed, or the shards were written by others.
    """
    path = Path(directory) / "card.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: the build was interrupted, or the shards were written by others"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def to_markdown(card: dict[str, Any]) -> str:
    """The card as a page; its tables are for people, `card.json` is for programs."""
    parts = [f"# {_escaped(card['name'])}", _escaped(card["description"]), f"Licence: {_escaped(card['licence'])}"]
    parts += ["## Contents", _contents(card["splits"])]
    languages = _languages(card["splits"])
    if languages:
        parts += ["## Languages", languages]
    parts += ["## Source", _listing(card["provenance"])]
    parts += ["## Cleaning and exclusions", _listing(card["report"]) or "Nothing was changed or left out."]
    if card["settings"]:
        parts += ["## Settings", _listing(card["settings"])]
    rows = [[shard["name"], shard["samples"], shard["bytes"], f"`{shard['sha256']}`"] for shard in card["shards"]]
    parts += ["## Shards", _table(["tar", "samples", "bytes", "SHA-256"], rows)]
    return "\n\n".join(parts) + "\n"


def _shards(directory: Path, splits: list[str]) -> list[dict[str, Any]]:
    shards = []
    for split in splits:
        path = directory / "index" / f"{split}.json"
        if path.is_file():  # a split without samples has no tars and no index
            for shard in json.loads(path.read_text(encoding="utf-8"))["shards"]:
                shards.append({"split": split, **{key: shard[key] for key in ("name", "samples", "bytes", "sha256")}})
    return shards


def _contents(splits: dict[str, Any]) -> str:
    rows = []
    for split, part in splits.items():
        rows.append([split, "(samples)", part["samples"], part["samples"], "", ""])
        for name, member in part["members"].items():
            rows.append([split, name, member["samples"], member["count"], member["bytes"], _measures(member)])
    return _table(["split", "member", "samples", "count", "bytes", "measures (min / mean / max)"], rows)


def _measures(member: dict[str, Any]) -> str:
    parts = []
    for name, value in member.items():
        if isinstance(value, dict) and "mean" in value:
            parts.append(f"{name.replace('_', ' ')} {value['min']:g} / {value['mean']:g} / {value['max']:g}")
    if "total_seconds" in member:
        parts.append(f"{member['total_seconds'] / 3600:.2f} hours")
    if "unreadable" in member:
        parts.append(f"{member['unreadable']} unreadable")
    return "; ".join(parts)


def _languages(splits: dict[str, Any]) -> str:
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for split, part in splits.items():
        for name, member in part["members"].items():
            for language, count in member.get("languages", {}).items():
                rows.setdefault((name, language), {})[split] = count
    cells = [[*row, *(counts.get(split, 0) for split in splits)] for row, counts in sorted(rows.items())]
    return _table(["member", "language", *splits], cells) if cells else ""


def _listing(values: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}- {_escaped(str(name))}:", _listing(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {_escaped(str(name))}: {_inline(value)}")
    return "\n".join(lines)


def _inline(value: Any) -> str:
    return _escaped(value if isinstance(value, str) else f"`{json.dumps(value, ensure_ascii=False)}`")


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_escaped(str(cell)) for cell in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    """Safe inside a Markdown table, and no markup: names come from data that nobody has vouched for."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
