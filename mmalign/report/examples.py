"""Examples of retrieval, kept in a run directory for its report: what was asked for, and what came first.

    examples/examples.json   [{"column", "direction", "stage"?, "query": ITEM, "rank": int,
                               "results": [{"score": float, "relevant": bool, **ITEM}, …]}, …]
    examples/NAME.EXT        pictures (png, jpg, webp) and sounds (flac, wav, ogg, mp3) that the items name

with ITEM = {"key": str, "text"?: str, "image"?: "NAME.png", "audio"?: "NAME.flac"}. `rank` is that of the best relevant
item, 1 is first. A key comes from a data set, so it never becomes a path: files are named by `media_name`, and a name
that is not a plain file name of a known type inside examples/ is not opened.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

IMAGE_TYPES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}
AUDIO_TYPES = {"flac": "audio/flac", "wav": "audio/wav", "ogg": "audio/ogg", "mp3": "audio/mpeg"}
FOLDER = "examples"


@dataclass(frozen=True)
class Item:
    """One sample as a person may see and hear it; `image` and `audio` name files in examples/, "" means none."""

    key: str
    text: str = ""
    image: str = ""
    audio: str = ""


@dataclass(frozen=True)
class Result:
    """One retrieved item; `score` is the cosine similarity to the query."""

    item: Item
    score: float
    relevant: bool


@dataclass(frozen=True)
class Example:
    """One query, the rank (from 1) of the best relevant item, and the first few results, best first."""

    column: str
    direction: str
    query: Item
    rank: int
    results: list[Result] = field(default_factory=list)
    stage: str = ""


def media_name(key: str, extension: str) -> str:
    """A plain and unique file name for a member of the sample `key`, whatever characters the key has."""
    extension = extension.lower()
    if extension not in IMAGE_TYPES | AUDIO_TYPES:
        raise ValueError(f"no picture or sound of an example may have the type {extension!r}")
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", key)[:40].strip("_")
    return f"{readable}-{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}.{extension}"


def save_media(run_dir: Path, key: str, extension: str, data: bytes) -> str:
    """Write a picture or a sound, encoded as it stood in its shard, under examples/; return the name for an `Item`."""
    name = media_name(key, extension)
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return name


def media_path(run_dir: Path, name: str, types: dict[str, str]) -> Path | None:
    """The file that an item names; None when there is no such file, or the name is not a plain one of these types."""
    plain = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.([A-Za-z0-9]+)", name)
    if plain is None or plain[1].lower() not in types:
        return None
    path = run_dir / FOLDER / name
    return path if path.is_file() and not path.is_symlink() else None


def write_examples(run_dir: Path, examples: Iterable[Example]) -> None:
    """Replace the run's examples.json at once."""
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_entry(example) for example in examples]
    temporary = folder / "examples.json.tmp"
    temporary.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(temporary, folder / "examples.json")


def read_examples(run_dir: Path) -> list[Example]:
    """The run's examples; none when there is no file, and without those entries that are no examples."""
    path = run_dir / FOLDER / "examples.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError:
        return []
    examples = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            examples.append(_example(entry))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return examples


def _entry(example: Example) -> dict[str, Any]:
    def item(value: Item) -> dict[str, str]:
        return {name: text for name, text in asdict(value).items() if text or name == "key"}

    results = [{**item(r.item), "score": float(r.score), "relevant": bool(r.relevant)} for r in example.results]
    return {
        "column": example.column,
        "direction": example.direction,
        "stage": example.stage,
        "query": item(example.query),
        "rank": int(example.rank),
        "results": results,
    }


def _example(entry: dict[str, Any]) -> Example:
    def item(values: dict[str, Any]) -> Item:
        return Item(str(values["key"]), *(str(values.get(name) or "") for name in ("text", "image", "audio")))

    return Example(
        column=str(entry["column"]),
        direction=str(entry["direction"]),
        query=item(entry["query"]),
        rank=int(entry["rank"]),
        results=[Result(item(r), float(r["score"]), bool(r["relevant"])) for r in entry["results"]],
        stage=str(entry.get("stage") or ""),
    )
