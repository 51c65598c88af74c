"""One self-contained page for one run or several: no file beside it, no address that it loads anything from."""

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.report import sections
from mmalign.report.compare import Comparison, compare, machine_line, tradeoff_figure
from mmalign.report.forgetting_plots import best_of, matrix_heat_map
from mmalign.report.gallery import gallery
from mmalign.report.matrix import run_matrix
from mmalign.report.plots import Curve, Interval, curves, intervals, modality_gap
from mmalign.report.run import Run
from mmalign.report.style import number, svg, theme_css

_PANELS = [
    ("loss", "training loss", False),
    ("loss/", "losses", False),
    ("learning_rate/", "learning rate", False),
    ("gradient_norm", "gradient norm", False),
    ("samples_per_second", "samples per second", False),
    ("data_wait_share", "share of time waiting for data", False),
    ("logit_scale/", "logit scale", False),
]


def render(runs: Sequence[Run]) -> str:
    """The page. Everything that comes out of a run is escaped; scripts other than the page's own do not run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (folder / "page_script.html").read_text(encoding="utf-8").removeprefix("<script>").rstrip()
    script = script.removesuffix("</script>")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    page = single_page(runs[0]) if len(runs) == 1 else several_page(runs)
    return environment.get_template("template.html").render(
        page=page,
        style=Markup(theme_css() + (folder / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        svg=lambda figure, title: Markup(svg(figure, title)),
        number=number,
    )


def single_page(run: Run) -> dict[str, Any]:
    """What the template needs for one run; empty values leave their sections out."""
    matrix = run_matrix(run)
    staged = len(matrix.moments) > 2 and bool(matrix.columns)
    return {
        "title": run.name,
        "facts": _facts([run]),
        "cards": sections.cards(run),
        "comparison": None,
        "tradeoff": None,
        "scores": _scores({"": [run]}),
        "scores_of": "",
        "metrics": sections.metrics_table(run),
        "matrices": [("", matrix_heat_map(matrix))] if staged else [],
        "forgetting": sections.forgetting_table(run, matrix) if staged else None,
        "transfer": sections.transfer_table(run, matrix) if staged else None,
        "galleries": _galleries([run]),
        "curves": training_curves([run]),
        "gaps": _gaps([run]),
        "setup": sections.setup_table(run) if run.stages else None,
        "config": _yaml(run.config),
        "versions": _versions(run),
        "cost": sections.cost_table([run]) if run.cost else None,
        "quarantine": sections.quarantine_table([run]) if run.quarantine else None,
    }


def several_page(runs: Sequence[Run]) -> dict[str, Any]:
    """What the template needs for several runs, grouped by arm."""
    comparison = compare(runs)
    firsts = [members[0] for members in comparison.arms.values()]
    costs = [run for run in runs if run.cost]
    return {
        "title": _common_title(comparison),
        "facts": _facts(runs),
        "cards": [],
        "comparison": sections.comparison_table(comparison),
        "tradeoff": tradeoff_figure(comparison),
        "scores": _scores(comparison.arms),
        "scores_of": f" of seed {firsts[0].seed}" if any(len(m) > 1 for m in comparison.arms.values()) else "",
        "metrics": sections.arms_table(comparison),
        "matrices": _matrices(comparison),
        "forgetting": None,
        "transfer": None,
        "galleries": _galleries(firsts),
        "curves": training_curves(firsts),
        "gaps": _gaps(firsts),
        "setup": sections.setup_table(runs[0]) if runs[0].stages else None,
        "config": _yaml(runs[0].config),
        "versions": _versions(runs[0]),
        "cost": sections.cost_table(costs) if costs else None,
        "quarantine": sections.quarantine_table(runs) if any(run.quarantine for run in runs) else None,
    }


def training_curves(runs: Sequence[Run]) -> list[tuple[str, Any]]:
    """Figures of what was logged while training: one line a quantity for one run, one line a run for several."""
    figures = []
    boundaries = _boundaries(runs[0])
    for prefix, title, logarithmic in _PANELS:
        lines = []
        for place, run in enumerate(runs):
            names = list(run.train[0]) if run.train else []
            chosen = [n for n in names if n == prefix or (prefix.endswith("/") and n.startswith(prefix))]
            if prefix.endswith("/") and len(runs) > 1:
                continue
            for name in chosen:
                steps, values = run.series(name)
                label = run.label if len(runs) > 1 else title if name == prefix else name.removeprefix(prefix)
                if values:
                    lines.append(Curve(label, steps, values, place if len(runs) > 1 else -1))
        # one loss alone is the training loss again
        if lines and not (prefix == "loss/" and len(lines) == 1 and len(boundaries) < 2):
            figures.append((title, curves(lines, title, boundaries, logarithmic)))
    return figures


def _matrices(comparison: Comparison) -> list[tuple[str, Any]]:
    """A heat map an arm, on one scale."""
    every = comparison.matrices
    if all(len(matrix.moments) < 2 for matrix in every.values()):
        return []
    best: dict[str, float] = {}
    for matrix in every.values():
        for j, (column, higher) in enumerate(zip(matrix.columns, matrix.higher_is_better, strict=True)):
            best[column] = best_of([*matrix.values[:, j].tolist(), best.get(column, math.nan)], higher)
    return [
        (arm, matrix_heat_map(matrix, [best[column] for column in matrix.columns])) for arm, matrix in every.items()
    ]


def _scores(arms: dict[str, list[Run]]) -> Any:
    """The main scores with their intervals, and the other direction of each, from the first seed of every arm."""
    values = []
    for arm, runs in arms.items():
        rows = runs[0].last_rows
        main = {row.column: row for row in rows if row.main}
        for row in rows:
            head = main.get(row.column)
            if head is None or row.metric != head.metric or "->" not in row.direction or "[" in row.direction:
                continue
            label = f"{row.column}: {row.direction.replace('->', ' → ')}"
            values.append(Interval(label, row.value, row.ci_low, row.ci_high, row.chance, arm, row.emergent))
    labels = list(dict.fromkeys(value.label for value in values))[:16]
    shown = [value for value in values if value.label in labels]
    metrics = {row.metric for runs in arms.values() for row in runs[0].last_rows if row.main and "->" in row.direction}
    return intervals(shown, " / ".join(sorted(metrics))) if shown else None


def _galleries(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    per_kind = 2 if len(runs) == 1 else 1
    found = [(run.label, gallery(run.directory, run.examples, per_kind)) for run in runs if run.examples]
    return [(label, groups) for label, groups in found if groups]


def _gaps(runs: Sequence[Run]) -> list[tuple[str, Any, dict[str, float]]]:
    found = []
    for run in runs:
        gap = run.modality_gap
        try:
            if gap:
                figure = modality_gap(gap["points"], gap.get("explained_variance") or ())
                found.append((run.label, figure, {str(k): float(v) for k, v in (gap.get("gaps") or {}).items()}))
        except (TypeError, ValueError, IndexError):
            continue  # points that are no pairs of numbers
    return found


def _boundaries(run: Run) -> list[tuple[float, str]]:
    """First step and name of every stage in train.csv."""
    found: dict[str, float] = {}
    for line in run.train:
        name = line.get("stage") or ""
        if name and name not in found and (line.get("step") or "").isdigit():
            found[name] = float(line["step"])
    return [(step, name) for name, step in found.items()]


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    run = runs[0]
    arms = list(dict.fromkeys(r.arm for r in runs))
    seeds = sorted({r.seed for r in runs})
    stages = [str(stage.get("name", "")) for stage in run.stages] or [r.stage for r in run.rows if r.stage_index]
    facts = [
        ("arms", ", ".join(arms) if len(runs) > 1 else ""),
        ("seeds" if len(seeds) > 1 else "seed", ", ".join(map(str, seeds))),
        ("stages", " → ".join(dict.fromkeys(stages))),
        ("machine", machine_line(run)),
        ("date", str(run.info.get("created", ""))[:10]),
    ]
    return [(name, value) for name, value in facts if value]


def _common_title(comparison: Comparison) -> str:
    names = [run.name for runs in comparison.arms.values() for run in runs]
    first = [name.split("/")[0] for name in names]
    return first[0] if len(set(first)) == 1 and first[0] != names[0] else f"{len(names)} runs"


def _versions(run: Run) -> list[tuple[str, str]]:
    versions = run.info.get("versions")
    return [(str(k), str(v)) for k, v in versions.items()] if isinstance(versions, dict) else []


def _yaml(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110) if config else ""
