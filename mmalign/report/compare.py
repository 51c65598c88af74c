"""Arms and seeds side by side: the figures behind `mmalign compare`, in JSON and CSV.

    comparison.json    everything below, and the cost of every arm
    comparison.csv     the summary: arm, metric, mean, std, n_seeds
    configs/results/NAME.json   {"command", "machine", "seeds", "rows", "summary"}, which the README's tables are made
                       from: rows {arm, seed, column, stage, value, higher_is_better} are the matrices' entries, summary
                       {arm, metric, mean, std, n_seeds} their means and sample standard deviations over seeds

Metrics of the summary: "last/COLUMN" is the main score at the end, "last/COLUMN/DIRECTION/METRIC" each of the others
(those of single languages aside), "best/COLUMN" the best main score on the way,
"forgetting/COLUMN" and "retention_percent/COLUMN" what was lost and kept of an old column (evaluation/forgetting.py);
"new_task" is the mean main score of the columns that the last stage trained first, "retention_percent" and
"backward_transfer" are means over the old columns; "cost/NAME" is a total of cost.json.
"""

import csv
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from mmalign.evaluation.forgetting import (
    Matrix,
    backward_transfer,
    forgetting_by_column,
    retention_by_column,
    retention_percent,
)
from mmalign.report.forgetting_plots import Tradeoff, best_of, stability_plasticity
from mmalign.report.matrix import mean_matrix, new_columns, old_columns, run_matrix
from mmalign.report.run import Run
from mmalign.training.yaml_config import differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FREE_OF_SEEDS = ("name", "seed", "runtime", "logging", "sources", "sweep")
"""Where the configurations of one arm's runs may differ: none of it changes what the figures mean."""


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (NaN for one seed) of one metric of one arm."""

    mean: float
    std: float
    n_seeds: int


@dataclass(frozen=True)
class Comparison:
    """Runs by arm, in the order given; `matrices` are means over seeds, `summary` is by (arm, metric)."""

    arms: dict[str, list[Run]]
    matrices: dict[str, Matrix]
    summary: dict[tuple[str, str], Statistic]
    new: list[str]
    old: list[str]

    def get(self, arm: str, metric: str) -> Statistic:
        return self.summary.get((arm, metric), Statistic(math.nan, math.nan, 0))

    def metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for _, metric in self.summary))


def compare(runs: Sequence[Run]) -> Comparison:
    """Group runs by arm and summarise each arm over its seeds.

    Raises:
        ValueError: two runs of one arm have the same seed, or different columns or stages, or differ in more of their
            configuration than a seed changes.
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    summary = {}
    for arm, members in arms.items():
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"arm {arm!r} has two runs with the same seed: {seeds}. Leave one out, or train it with another "
                f"--seed; what is no seed of one experiment needs another {_naming(members)}"
            )
        _check_seeds(arm, members)
        found = [figures(run) for run in members]
        for metric in dict.fromkeys(name for values in found for name in values):
            summary[arm, metric] = statistic([values.get(metric, math.nan) for values in found])
    matrices = {arm: mean_matrix([run_matrix(run) for run in members]) for arm, members in arms.items()}
    every = [(run, run_matrix(run)) for run in runs]
    new = list(dict.fromkeys(name for _, matrix in every for name in new_columns(matrix)))
    old = list(dict.fromkeys(name for run, matrix in every for name in old_columns(run.rows, matrix)))
    return Comparison(arms, matrices, summary, new, old)


def _check_seeds(arm: str, runs: list[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if not first.config or not run.config:
            continue
        differing = [key for key in differences(first.config, run.config) if key.split(".")[0] not in _FREE_OF_SEEDS]
        if differing:
            raise ValueError(
                f"arm {arm!r}: {first.directory} and {run.directory} are no seeds of one experiment, they differ in "
                f"{', '.join(differing)}. Leave one out, or train it with another {_naming(runs)}"
            )


def _naming(runs: list[Run]) -> str:
    """The key that says of which arm these runs are."""
    return "arm" if all(run.info.get("arm") for run in runs) else "name"


def figures(run: Run) -> dict[str, float]:
    """Every metric of the summary for one run; NaN where it does not exist."""
    matrix = run_matrix(run)
    old, new = old_columns(run.rows, matrix), new_columns(matrix)
    values: dict[str, float] = {}
    for j, column in enumerate(matrix.columns):
        values[f"last/{column}"] = float(matrix.values[-1, j])
        values[f"best/{column}"] = best_of(list(matrix.values[:, j]), matrix.higher_is_better[j])
    last = max(row.stage_index for row in run.rows)
    for row in run.rows:
        if row.stage_index == last and "[" not in row.direction:
            values[f"last/{row.column}/{row.direction}/{row.metric}"] = row.value
    kept = matrix.select(old)
    by_column = {"forgetting": forgetting_by_column(kept), "retention_percent": retention_by_column(kept)}
    for name, numbers in by_column.items():
        values |= {f"{name}/{column}": float(number) for column, number in zip(old, numbers, strict=True)}
    values["new_task"] = _new_task(matrix, new)
    values["retention_percent"] = retention_percent(kept)
    values["backward_transfer"] = backward_transfer(kept)
    return values | {f"cost/{name}": value for name, value in run.cost.get("total", {}).items()}


def statistic(values: Sequence[float]) -> Statistic:
    """Over the values that exist."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Statistic(math.nan, math.nan, 0)
    mean, spread = fmean(known), stdev(known) if len(known) > 1 else math.nan
    return Statistic(mean, 0.0 if spread < 1e-12 * abs(mean) else spread, len(known))  # equal but for rounding


def tradeoffs(comparison: Comparison) -> list[Tradeoff]:
    """Points of the stability-plasticity plot: the arms, and the alpha sweeps of those that have one."""
    points = []
    for arm in comparison.arms:
        kept, new = comparison.get(arm, "retention_percent"), comparison.get(arm, "new_task")
        spread = [0.0 if math.isnan(s.std) else s.std for s in (kept, new)]
        cost = comparison.get(arm, "cost/seconds").mean
        points.append(Tradeoff(arm, kept.mean, new.mean, spread[0], spread[1], cost))
    for arm, runs in comparison.arms.items():
        alphas = sorted({alpha for run in runs for alpha in run.sweep})
        for alpha in alphas:
            found = [_swept(run, alpha) for run in runs if alpha in run.sweep]
            kept, new = (statistic([pair[i] for pair in found]) for i in (0, 1))
            points.append(Tradeoff(f"α={alpha:g}", kept.mean, new.mean, curve=f"{arm}, α sweep"))
    return points


def tradeoff_figure(comparison: Comparison) -> "Figure | None":
    """The stability-plasticity plot; None when no arm has both a new task and something old to keep."""
    points = tradeoffs(comparison)
    if not any(math.isfinite(point.retention) and math.isfinite(point.new_task) for point in points):
        return None
    return stability_plasticity(points, ", ".join(comparison.new), "seconds of training")


def write_comparison(
    runs: Sequence[Path], out: Path, results: Path | None = None, command: str | None = None
) -> Comparison:
    """Write OUT/comparison.json and .csv, and the shipped format to `results`; returns what they hold.

    Where arms have both something old and a new task, the stability-plasticity plot lies beside `results` as PNG.

    `command` is what made the figures; None takes the command line of this process.
    """
    comparison = compare([Run(path) for path in runs])
    content = results_content(comparison, command or shlex.join(["mmalign", *sys.argv[1:]]))
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "comparison.json", content)
    with open(out / "comparison.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["arm", "metric", "mean", "std", "n_seeds"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(content["summary"])
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        _write_json(results, content)
        if (figure := tradeoff_figure(comparison)) is not None:
            figure.savefig(results.with_suffix(".png"), dpi=110, bbox_inches="tight", facecolor="white")
    return comparison


def results_content(comparison: Comparison, command: str) -> dict[str, Any]:
    """The shipped format; NaN is null."""
    rows = []
    for arm, runs in comparison.arms.items():
        for run in runs:
            matrix = run_matrix(run)
            for i, stage in enumerate(matrix.moments):
                for j, column in enumerate(matrix.columns):
                    entry = {"arm": arm, "seed": run.seed, "column": column, "stage": stage}
                    value = _null(float(matrix.values[i, j]))
                    rows.append(entry | {"value": value, "higher_is_better": matrix.higher_is_better[j]})
    summary = [
        {"arm": arm, "metric": metric, "mean": _null(s.mean), "std": _null(s.std), "n_seeds": s.n_seeds}
        for (arm, metric), s in comparison.summary.items()
    ]
    every = [run for runs in comparison.arms.values() for run in runs]
    return {
        "command": command,
        "machine": next((machine_line(run) for run in every if run.info.get("machine")), ""),
        "seeds": sorted({run.seed for run in every}),
        "rows": rows,
        "summary": summary,
    }


def machine_line(run: Run) -> str:
    """The machine of a run in a few words."""
    machine = run.info.get("machine")
    if not isinstance(machine, dict):
        return str(machine or "")
    gpus = machine.get("gpus") or []
    parts = [str(machine.get("processor", "")), f"{machine['cores']} cores" if machine.get("cores") else ""]
    parts += [f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)]
    return ", ".join(part for part in parts if part)


def _swept(run: Run, alpha: float) -> tuple[float, float]:
    """Retention in percent and new-task score with the weights of one alpha in place of the last ones."""
    last = max(row.stage_index for row in run.rows)
    rows = [row for row in run.rows if row.stage_index < last] + [r for r in run.sweep[alpha] if r.stage_index == last]
    matrix = run_matrix(run, rows)
    return retention_percent(matrix.select(old_columns(rows, matrix))), _new_task(matrix, new_columns(matrix))


def _new_task(matrix: Matrix, new: list[str]) -> float:
    """Mean of the new columns' last scores; NaN when they do not point the same way."""
    chosen = matrix.select(new)
    if not new or len(set(chosen.higher_is_better)) > 1:
        return math.nan
    known = [float(value) for value in chosen.values[-1] if math.isfinite(value)]
    return fmean(known) if known else math.nan


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
