"""The file of results: rows, growth, and what they were measured on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.bench.base import Ceilings, Settings
from mmalign.bench.catalogue import NAMES
from mmalign.bench.machine import machine, matrix_extension, versions
from mmalign.bench.memory import measure_name
from mmalign.bench.ratios import Row

_SAME = ("machine", "device", "versions", "threads", "scale")


def facts(settings: Settings) -> dict[str, Any]:
    """What all figures of one file share."""
    return {
        "machine": machine(settings.device),
        "device": settings.device,
        "matrix_extension": matrix_extension() or None,
        "versions": versions(settings.device),
        "threads": settings.threads,
        "scale": settings.scale,
        "memory": measure_name(settings.device),
        "command": "scripts/bench" if settings.device == "cpu" else f"scripts/bench --device {settings.device}",
    }


def open_results(path: Path, settings: Settings) -> dict[str, Any]:
    """What the file holds already, to be completed; a new content where there is none.

    Raises:
        ValueError: its figures come from another machine, other versions or other settings: they cannot be mixed.
    """
    found = facts(settings)
    if not path.exists():
        return {**found, "rows": [], "growth": None}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not content["rows"] and not content["growth"]:
        return {**found, "rows": [], "growth": None}
    differing = [key for key in _SAME if content.get(key) != found[key]]
    if differing:
        raise ValueError(f"{path} differs in {', '.join(differing)}; its figures cannot be mixed: remove it or move it")
    return {"growth": None, **content, **found}


def put_rows(content: dict[str, Any], new: Sequence[Row], ceilings: Ceilings) -> None:
    """Replace the rows of the benchmarks that were run; the order is that of the catalogue."""
    names = {row.benchmark for row in new}
    kept = [row for row in content["rows"] if row["benchmark"] not in names]
    place = {name: i for i, name in enumerate(NAMES)}
    merged = kept + [row.to_dict() for row in new]
    content["rows"] = sorted(merged, key=lambda row: place.get(row["benchmark"], len(place)))
    content["ceilings"] = ceilings.to_dict()


def save(path: Path, content: dict[str, Any]) -> None:
    """All of the file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
