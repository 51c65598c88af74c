"""The README's result tables, generated from the figures that ship beside the configs.

<!-- results:NAME -->
(written from configs/results/NAME.json; do not edit)
<!-- /results:NAME -->
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from mmalign.report.style import number

_BLOCK = re.compile(r"(<!-- results:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- /results:(?P=name) -->)", re.DOTALL)


def readme_table(path: Path) -> str:
    """A results file as a Markdown table: one row an arm, mean ± standard deviation over seeds, machine and command.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not in the format of mmalign.report.compare.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _table(content)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a file of results: {error!r}") from error


def update_readme(readme: Path, results: Path) -> list[str]:
    """Write every marked table of the README anew from the folder of results; returns the names of those that changed.

    Raises:
        FileNotFoundError: a marker names a file that is not there.
    """
    old = readme.read_text(encoding="utf-8")
    stale = stale_tables(readme, results)
    if stale:
        new = _BLOCK.sub(lambda m: f"{m[1]}{_body(results, m['name'])}{m[4]}", old)
        temporary = readme.with_name(f".{readme.name}.tmp")
        temporary.write_text(new, encoding="utf-8")
        os.replace(temporary, readme)
    return stale


def stale_tables(readme: Path, results: Path) -> list[str]:
    """Names of the marked tables that differ from what the files of results say; none when README and files agree.

    Raises:
        FileNotFoundError: a marker names a file that is not there.
        ValueError: a marker is opened and not closed.
    """
    text = readme.read_text(encoding="utf-8")
    opened = re.findall(r"<!-- results:([\w.-]+) -->", text)
    blocks = list(_BLOCK.finditer(text))
    unclosed = set(opened) - {block["name"] for block in blocks}
    if unclosed:
        raise ValueError(f"{readme}: no closing marker for the results {', '.join(sorted(unclosed))}")
    return [block["name"] for block in blocks if block["body"] != _body(results, block["name"])]


def _body(results: Path, name: str) -> str:
    return readme_table(results / f"{name}.json") + "\n"


def _table(content: dict[str, Any]) -> str:
    summary = {(entry["arm"], entry["metric"]): entry for entry in content["summary"]}
    arms = list(dict.fromkeys(arm for arm, _ in summary))
    directions = {row["column"]: row["higher_is_better"] for row in content["rows"]}
    columns = {f"last/{column}": f"{column} {'↑' if up else '↓'}" for column, up in directions.items()}
    columns |= {"retention_percent": "kept of the old, % ↑", "new_task": "new task ↑", "cost/seconds": "seconds"}
    shown = [m for m in columns if any(_known(summary.get((arm, m))) for arm in arms)]
    lines = [["arm", *(_escaped(columns[m]) for m in shown)], ["---", *("---:" for _ in shown)]]
    lines += [[_escaped(arm), *(_cell(summary.get((arm, m))) for m in shown)] for arm in arms]
    seeds = content["seeds"]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    spread = "mean ± standard deviation over" if len(seeds) > 1 else "from"
    plural = "seeds" if len(seeds) > 1 else "seed"
    note = f"{spread} {plural} {', '.join(str(seed) for seed in seeds)}"
    machine = f"; {_escaped(content['machine'])}" if content["machine"] else ""
    return f"{text}\n\n{note[0].upper()}{note[1:]}{machine}; `{content['command']}`.\n"


def _known(entry: dict[str, Any] | None) -> bool:
    return entry is not None and entry["mean"] is not None


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["mean"] is None:
        return "–"
    std = math.nan if entry["std"] is None else float(entry["std"])
    shown = number(float(entry["mean"]))
    return shown if math.isnan(std) else f"{shown} ± {number(std)}"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
