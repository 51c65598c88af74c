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

from mmalign.bench.base import NO_BAR
from mmalign.bench.ratios import bars_held
from mmalign.report.style import number

_BLOCK = re.compile(r"(<!-- results:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- /results:(?P=name) -->)", re.DOTALL)


def readme_table(path: Path) -> str:
    """A results file as a Markdown table, with machine and command.

    A comparison has one row an arm, mean ± standard deviation over seeds; benchmarks have one a quantity.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither in the format of mmalign.report.compare nor in that of mmalign.bench.results.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _benchmarks(content) if "threads" in content else _table(content)
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


def _benchmarks(content: dict[str, Any]) -> str:
    if not content["rows"]:
        return f"Not measured yet; `{content['command']}`.\n"
    lines = [
        ["benchmark", "quantity", "peer", "mmalign / peer", "bar", "reached"],
        [*["---"] * 3, "---:", "---:", "---"],
    ]
    remarks = []
    for row in content["rows"]:
        measured = row["ratio_median"] is not None
        figures = [number(row[f"ratio_{name}"]) for name in ("median", "min", "max")] if measured else ["–"] * 3
        ratio = f"{figures[0]} ({figures[1]} … {figures[2]})" if measured else "–"
        verdict = "yes" if row["holds"] else "not measured" if not measured else "–" if row["bar"] == NO_BAR else "no"
        words = [row["benchmark"], row["quantity"], row["peer"], ratio, row["bar"], verdict]
        lines.append([_escaped(word) for word in words])
        for remark in filter(None, (row["note"], row["roofline"])):
            remarks.append(f"- {_escaped(row['benchmark'])}, {_escaped(row['quantity'])}: {_escaped(remark)}.")
    parts = ["\n".join("| " + " | ".join(line) + " |" for line in lines)]
    parts.append(f"{bars_held(content['rows'])} bars are reached.")
    parts += ["\n".join(remarks)] if remarks else []
    known = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if version)
    command, size = content["command"], "" if content["scale"] == 1 else f"; {content['scale']:g} of the full sizes"
    parts.append(
        f"Median (min … max) of the pairs; {_escaped(content['machine'])}, {content['threads']} threads; {known}; "
        f"memory: {_escaped(content['memory'])}{size}; `{command}`, one row's with `{command} BENCHMARK`."
    )
    return "\n\n".join(parts + _growth(content)) + "\n"


def _growth(content: dict[str, Any]) -> list[str]:
    if not content["growth"]:
        return []
    lines = ["| part | sizes | time grows as n to the | memory as n to the |", "| --- | --- | ---: | ---: |"]
    for entry in content["growth"]:
        sizes = f"{', '.join(f'{size:,}' for size in entry['sizes'])} {entry['unit']}"
        power = f"{entry['time_exponent']:.2f} | {entry['memory_exponent']:.2f}"
        lines.append(f"| {_escaped(entry['task'])} | {_escaped(sizes)} | {power} |")
    plot = "![Growth of time and memory](configs/results/growth.png)"
    return ["\n".join(lines), f"`{content['command']} --growth`.", plot]


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
