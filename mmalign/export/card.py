"""The model card of an export: what it is, what it was trained on, how well it does, and under which licences."""

import json
import math
from pathlib import Path
from typing import Any

from mmalign.evaluation.table import Row, read_rows
from mmalign.model import Aligner

_HEADER = """\
---
library_name: mmalign
tags: [multimodal, alignment, embeddings]
---
"""
_USE = """\
## Use

```python
import mmalign

model = mmalign.load("this-folder")
preprocess = model.encoders["{modality}"].preprocess  # .prepare(value, None) and .collate(rows)
```

On any WebDataset shards: `mmalign evaluate this-folder --data SHARDS`. Loading runs no code from this folder."""


def model_card(model: Aligner, facts: dict[str, Any], run_or_checkpoint: Path) -> str:
    """Markdown, with the header that model hubs read. Names from outside are escaped."""
    config = facts["config"]
    title = plain(config["name"]) + (f" ({plain(config['arm'])})" if config["arm"] else "")
    parts = [
        f"{_HEADER}\n# {title}",
        f"Maps {', '.join(plain(name) for name in model.modalities)} to unit vectors of {model.dim} numbers in one "
        f"space. Made with mmalign; seed {config['seed']}, {facts['total_step']} steps.",
        "## Towers\n\n" + _towers(model, config["model"]),
        "## Training\n\n" + _training(config, facts),
        "## Results\n\n" + _results(_rows(run_or_checkpoint, facts)),
        _USE.format(modality=plain(model.modalities[0])),
        "## Licences\n\nThe weights carry on the licences of the towers that they started from, and of the data that "
        "they were trained on:\n\n" + _licences(model, config),
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: Any) -> str:
    """A text in a cell of Markdown, without markup of its own."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{sign}" if sign in "\\`*_|[]#!$" else sign for sign in " ".join(escaped.split()))


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def _towers(model: Aligner, config: dict[str, Any]) -> str:
    rows = []
    for name, tower in model.encoders.items():
        settings = {key: value for key, value in tower.preprocess.spec.items() if key != "class"}  # type: ignore[union-attr, operator]
        parameters = sum(parameter.numel() for parameter in tower.parameters())
        class_path = config["init_args"]["encoders"][name]["class_path"]
        rows.append([plain(name), f"`{class_path}`", _count(parameters), plain(json.dumps(settings))])
    return _table(["modality", "class", "parameters", "preprocessing"], rows)


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def _training(config: dict[str, Any], facts: dict[str, Any]) -> str:
    rows = []
    for stage in facts["stages"]:
        data = config["stages"][stage["name"]]["data"]
        names = ", ".join(plain(name) for name in data)
        trained = ", ".join(plain(loss) for loss in config["stages"][stage["name"]]["losses"])
        rows.append([plain(stage["name"]), names, trained, stage["steps"], stage["batch_size"]])
    if not rows:
        return "None: this is the start of a run."
    return _table(["stage", "data", "losses", "steps", "batch"], rows)


def _rows(run_or_checkpoint: Path, facts: dict[str, Any]) -> list[Row]:
    """The main score of every column at this stage's end, where the checkpoint lies in its run."""
    run = run_or_checkpoint if run_or_checkpoint.is_dir() else run_or_checkpoint.parent.parent
    path = run / "metrics.jsonl"
    if not path.is_file() or facts.get("stage_step") is not None:
        return []
    return [row for row in read_rows(path) if row.main and row.stage_index == facts["stage_index"]]


def _results(rows: list[Row]) -> str:
    if not rows:
        return "Not measured at this step."
    cells = [
        [plain(row.column), plain(row.direction), plain(row.metric), f"{row.value:.3f}", _interval(row),
         "" if math.isnan(row.chance) else f"{row.chance:.3f}", row.n_queries, row.n_gallery]
        for row in rows
    ]  # fmt: skip
    return _table(["data", "direction", "metric", "value", "95 %", "chance", "queries", "gallery"], cells)


def _interval(row: Row) -> str:
    return "" if math.isnan(row.ci_low) else f"{row.ci_low:.3f} to {row.ci_high:.3f}"


def _licences(model: Aligner, config: dict[str, Any]) -> str:
    encoders = config["model"]["init_args"]["encoders"]
    lines = [f"- {plain(name)}: {tower_licence(encoders[name], model.encoders[name])}" for name in model.encoders]
    for name, path in _data_sets(config).items():
        lines.append(f"- data {plain(name)}: {data_licence(Path(path))}")
    return "\n".join(lines)


def tower_licence(encoder: dict[str, Any], tower: Any = None) -> str:
    """What is known about the weights that a tower started from."""
    from mmalign.assets import ASSETS

    settings = encoder.get("init_args") or {}
    if "pretrained" in settings and not settings["pretrained"] and not settings.get("weights"):
        return "started from random weights"
    for name in (settings.get("weights"), settings.get("model")):
        if name in ASSETS:
            return f"{plain(name)}, {plain(ASSETS[name].licence)}"
    name = settings.get("weights") or settings.get("model")
    if name is None:
        return "started from random weights"
    stated = getattr(getattr(tower, "trunk", None), "config", {}).get("license")
    return f"{plain(name)}, {plain(stated) if stated else 'see its publisher'}"


def _data_sets(config: dict[str, Any]) -> dict[str, str]:
    return {name: data["shards"] for stage in config["stages"].values() for name, data in stage["data"].items()}


def data_licence(directory: Path) -> str:
    """As the data card states it, where there is one."""
    from mmalign.data.card import read_card

    try:
        return plain(read_card(directory)["licence"])
    except (OSError, ValueError, KeyError):
        return "not stated"
