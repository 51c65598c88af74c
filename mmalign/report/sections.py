"""What the page says, as plain values: the template only lays it out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.evaluation.forgetting import (
    Matrix,
    backward_transfer_by_column,
    forgetting_by_column,
    retention_by_column,
    summary,
)
from mmalign.evaluation.table import Row
from mmalign.report.compare import Comparison, statistic
from mmalign.report.forgetting_plots import best_of
from mmalign.report.matrix import new_columns, old_columns, run_matrix
from mmalign.report.run import Run, finite
from mmalign.report.style import number


@dataclass(frozen=True)
class Card:
    """One headline: a big number, what it is, and what to hold it against."""

    title: str
    value: str
    unit: str = ""
    notes: list[str] = field(default_factory=list)
    badge: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Cell:
    """One cell: what it shows, what it sorts by, a second line, and whether it is the best of its row or column."""

    text: str
    sort: float | int | str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table; `flags` of a row are words that the page can filter by or mark ("main", "emergent")."""

    headers: list[str]
    rows: list[list[Cell]]
    flags: list[str] = field(default_factory=list)
    numeric_from: int = 1


def cards(run: Run, limit: int = 5) -> list[Card]:
    """Headlines of one run: its columns' main scores at the end, and what was kept."""
    found = []
    matrix = run_matrix(run)
    for row in (row for row in run.last_rows if row.main and finite(row.value)):
        others = [
            r
            for r in run.last_rows
            if r.column == row.column and r.metric == row.metric and r.direction == _reverse(row.direction)
        ]
        notes = [f"{_arrows(r.direction)} {number(r.value)}" for r in others if finite(r.value)]
        if finite(row.chance):
            ratio = row.value / row.chance if row.higher_is_better and row.chance > 0 else 0.0
            times = f"{ratio:,.0f} × " if ratio >= 2 else ""
            notes.append(f"{times}chance ({number(row.chance)})")
        elif "->" not in row.direction:
            before = matrix.values[0, matrix.columns.index(row.column)]
            notes += [f"{number(float(before))} at the start"] if finite(float(before)) and row.stage_index else []
        badge = "emergent" if row.emergent and "->" in row.direction else ""
        unit = f"{_arrows(row.direction)} {row.metric}" if "->" in row.direction else row.metric.replace("_", " ")
        found.append(Card(row.column, number(row.value), unit, notes, badge))
    kept = matrix.select(old_columns(run.rows, matrix))
    percents = [float(p) for p in retention_by_column(kept) if math.isfinite(p)]
    if len(matrix.moments) > 2 and percents:
        worst = min(range(len(percents)), key=percents.__getitem__)
        names = [n for n, p in zip(kept.columns, retention_by_column(kept), strict=True) if math.isfinite(p)]
        mean = sum(percents) / len(percents)
        note = f"least of all {names[worst]}: {percents[worst]:.0f} %"
        found = [*found[:limit], Card("kept of the old abilities", f"{mean:.0f} %", "mean retention", [note])]
    return found[: limit + 1]


def metrics_table(run: Run) -> Table:
    """Every row of the table of metrics, the moments side by side, with interval, chance and sizes at the last one."""
    moments = list(dict.fromkeys((row.stage_index, row.stage) for row in sorted(run.rows, key=lambda r: r.stage_index)))
    cells: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in run.rows:
        cells.setdefault((row.column, row.dataset, row.split, row.direction, row.metric), {})[row.stage_index] = row
    headers = ["column", "direction", "metric", *(name for _, name in moments)]
    headers += ["95 % interval", "chance", "queries", "gallery", "missing"]
    rows, flags = [], []
    for by_moment in cells.values():
        last = by_moment[max(by_moment)]
        values = [by_moment[i].value if i in by_moment else math.nan for i, _ in moments]
        best = best_of(values, last.higher_is_better)
        shown = [Cell(number(v), _sortable(v), best=len(values) > 1 and v == best) for v in values]
        interval = f"{number(last.ci_low)} – {number(last.ci_high)}" if finite(last.ci_low) else "–"
        sizes = [Cell(f"{n:,}", n) for n in (last.n_queries, last.n_gallery, last.n_missing)]
        rows.append([*_names(last), *shown, Cell(interval, _sortable(last.ci_low)), _number(last.chance), *sizes])
        flags.append(_flags(last))
    return Table(headers, rows, flags, numeric_from=3)


def arms_table(comparison: Comparison) -> Table:
    """Every last number of every arm, mean ± standard deviation over its seeds."""
    keys: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for arm, runs in comparison.arms.items():
        for row in (row for run in runs for row in run.last_rows):
            key = (row.column, row.dataset, row.split, row.direction, row.metric)
            keys.setdefault(key, {}).setdefault(arm, []).append(row)
    rows, flags = [], []
    for by_arm in keys.values():
        one = next(iter(by_arm.values()))[0]
        found = [statistic([row.value for row in by_arm.get(arm, [])]) for arm in comparison.arms]
        best = best_of([s.mean for s in found], one.higher_is_better)
        cells = [Cell(number(s.mean), _sortable(s.mean), _spread(s.std), s.mean == best) for s in found]
        rows.append([*_names(one), *cells, _number(one.chance)])
        flags.append(_flags(one))
    return Table(["column", "direction", "metric", *comparison.arms, "chance"], rows, flags, numeric_from=3)


def comparison_table(comparison: Comparison) -> Table:
    """One row an arm: main scores at the end, what was kept, the new task, and the cost."""
    first = next(iter(comparison.matrices.values()))
    ups = dict(zip(first.columns, first.higher_is_better, strict=True))
    metrics = {f"last/{column}": (f"{column} {'↑' if up else '↓'}", up) for column, up in ups.items()}
    metrics |= {"retention_percent": ("kept of the old, % ↑", True), "new_task": ("new task ↑", True)}
    metrics |= {"cost/seconds": ("time", False), "cost/bytes_stored": ("stored", False)}
    known = {m for m in metrics if any(finite(comparison.get(arm, m).mean) for arm in comparison.arms)}
    best = {m: best_of([comparison.get(arm, m).mean for arm in comparison.arms], metrics[m][1]) for m in known}
    rows = []
    for arm, runs in comparison.arms.items():
        cells = [Cell(arm, arm, f"{len(runs)} {'seed' if len(runs) == 1 else 'seeds'}")]
        for metric in (m for m in metrics if m in known):
            s = comparison.get(arm, metric)
            show = _amount if metric.startswith("cost/") else lambda name, value: number(value)
            marked = s.mean == best[metric] and not metric.startswith("cost/")
            cells.append(Cell(show(metric, s.mean), _sortable(s.mean), _spread(s.std, metric), marked))
        rows.append(cells)
    return Table(["arm", *(metrics[m][0] for m in metrics if m in known)], rows)


def forgetting_table(run: Run, matrix: Matrix) -> Table:
    """By column: when it was trained, its best and its last score, and what was lost of it."""
    old = set(old_columns(run.rows, matrix))
    lost, kept, backward = (f(matrix) for f in (forgetting_by_column, retention_by_column, backward_transfer_by_column))
    rows = []
    for j, column in enumerate(matrix.columns):
        since = matrix.trained_at[j]
        origin = matrix.moments[since] if since else ("before this run" if column in old else "never")
        values = [best_of(list(matrix.values[:, j]), matrix.higher_is_better[j]), float(matrix.values[-1, j])]
        changes = [float(numbers[j]) if column in old else math.nan for numbers in (lost, backward, kept)]
        arrow = "↑" if matrix.higher_is_better[j] else "↓"
        cells = [Cell(f"{column} {arrow}", column, matrix.metrics[j].replace("_", " ")), Cell(origin, since)]
        rows.append(cells + [_number(value) for value in (*values, *changes[:2])] + [_percent(changes[2])])
    headers = ["column", "learned in", "best", "last", "forgetting", "backward transfer", "retention"]
    return Table(headers, rows, numeric_from=2)


def transfer_table(run: Run, matrix: Matrix) -> Table:
    """The published summaries of the matrix, once for every metric that columns share."""
    columns = set(old_columns(run.rows, matrix)) | set(new_columns(matrix))
    groups: dict[str, list[str]] = {}
    for column, metric in zip(matrix.columns, matrix.metrics, strict=True):
        if column in columns:
            groups.setdefault(metric, []).append(column)
    found = {metric: summary(matrix.select(names)) for metric, names in groups.items()}
    names = [n for n in next(iter(found.values()), {}) if any(math.isfinite(values[n]) for values in found.values())]
    rows = []
    for name in names:
        title = name.replace("mtil_", "MTIL ").replace("tic_", "TiC ").replace("_", " ").replace(" percent", ", %")
        rows.append([Cell(title, title), *(_number(values[name]) for values in found.values())])
    headers = [f"{metric.replace('_', ' ')} ({len(groups[metric])})" for metric in found]
    return Table(["over columns of one metric", *headers], rows)


def setup_table(run: Run) -> Table:
    """Components, and how many parameters each stage trains of them."""
    stages = [stage for stage in run.stages if isinstance(stage.get("trainable"), dict)]
    components = list(dict.fromkeys(name for stage in stages for name in stage["trainable"]))
    rows = []
    for name in components:
        cells = [Cell(str(name), str(name))]
        for stage in stages:
            count = stage["trainable"].get(name)
            trained, total = count if isinstance(count, list | tuple) and len(count) == 2 else (count, None)
            text = "frozen" if trained == 0 else _amount("", trained)
            cells.append(Cell(text, _sortable(trained), f"of {_amount('', total)}" if finite(total) else ""))
        rows.append(cells)
    heads = [str(stage.get("name", "")) for stage in stages]
    heads = [
        f"{head} · {stage['steps']:,} steps" if finite(stage.get("steps")) else head
        for head, stage in zip(heads, stages, strict=True)
    ]
    return Table(["component", *heads], rows)


def cost_table(runs: Sequence[Run]) -> Table:
    """Costs: by stage for one run, totals for several."""
    if len(runs) == 1:
        entries = list(runs[0].cost.items())
    else:
        entries = [(run.label, run.cost["total"]) for run in runs if run.cost]
    names = list(dict.fromkeys(name for _, cost in entries for name, value in cost.items() if value or name != "price"))
    rows = [[Cell(label, label), *(_cost_cell(name, cost.get(name)) for name in names)] for label, cost in entries]
    titles = {
        "seconds": "time",
        "step_seconds": "time in steps",
        "loop_seconds": "time in the loop",
        "data_wait_share": "wait for data",
        "peak_memory_bytes": "peak memory",
        "bytes_stored": "stored",
        "samples_per_second": "samples/s",
        "tokens_per_second": "tokens/s",
        "utilisation": "of the matmul rate",
        "energy_joules": "energy",
    }
    heads = [titles.get(name, name.replace("_", " ")) for name in names]
    return Table(["stage" if len(runs) == 1 else "run", *heads], rows)


def quarantine_table(runs: Sequence[Run]) -> Table:
    """How many samples could not be used, by error, with one example of each."""
    counts: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for record in run.quarantine:
            error = str(record.get("error", "unknown"))
            counts.setdefault((run.label if len(runs) > 1 else "", error), []).append(
                f"{record.get('shard', '?')}: {record.get('key', '?')}"
            )
    rows = []
    for (label, error), where in sorted(counts.items(), key=lambda item: -len(item[1])):
        cells = [Cell(error, error), Cell(f"{len(where):,}", len(where)), Cell(where[0], where[0])]
        rows.append([Cell(label, label), *cells] if len(runs) > 1 else cells)
    return Table([*(["run"] if len(runs) > 1 else []), "error", "samples", "for example"], rows, numeric_from=9)


def _names(row: Row) -> list[Cell]:
    where = f"{row.dataset}, {row.split}" if row.split else row.dataset
    return [
        Cell(row.column, row.column, where),
        Cell(_arrows(row.direction), row.direction),
        Cell(row.metric, row.metric),
    ]


def _flags(row: Row) -> str:
    return " ".join(word for word, holds in (("main", row.main), ("emergent", row.emergent)) if holds)


def _arrows(direction: str) -> str:
    return direction.replace("->", " → ")


def _reverse(direction: str) -> str:
    return "->".join(reversed(direction.split("->"))) if "->" in direction else ""


def _sortable(value: object) -> float | str:
    return float(value) if isinstance(value, int | float) and finite(value) else ""


def _number(value: float) -> Cell:
    return Cell(number(value), _sortable(value))


def _percent(value: float) -> Cell:
    return Cell(f"{value:.1f} %" if finite(value) else "–", _sortable(value))


def _spread(std: float, metric: str = "") -> str:
    if not finite(std) or (metric.startswith("cost/") and std == 0):
        return ""
    return f"± {_amount(metric, std) if metric.startswith('cost/') else number(std)}"


def _cost_cell(name: str, value: float | None) -> Cell:
    return Cell("–", "") if value is None else Cell(_amount(name, value), value)


def _amount(name: str, value: Any) -> str:
    """A large number in a few characters, by the unit that its name states."""
    if not finite(value):
        return "–"
    if "bytes" in name:
        return _scaled(float(value), 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if name in ("utilisation", "data_wait_share"):
        return f"{100 * value:.1f} %"
    if name.endswith("joules"):
        return _scaled(float(value), 1000, ("J", "kJ", "MJ", "GJ"))
    if name.endswith("seconds"):
        if value < 100:
            return f"{value:.1f} s"
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60} h {minutes % 60:02d} min" if minutes > 99 else f"{minutes}:{seconds:02d} min"
    return _scaled(float(value), 1000, ("", "k", "M", "G", "T", "P", "E"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    place = 0
    while abs(value) >= base and place < len(units) - 1:
        value, place = value / base, place + 1
    shown = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{shown} {units[place]}".strip()
