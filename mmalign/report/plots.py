"""The figures of the report, as matplotlib figures: `style.svg` puts them into a page, `style.png` into W&B."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmalign.report.style import DASHES, INK, MARKERS, MUTED, SERIES, SURFACE, drawing, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LEGEND_INSIDE = 6
"""More entries would cover the curves and stand below them."""


@dataclass(frozen=True)
class Curve:
    """One line: values over steps. `colour` indexes the palette, so that an arm keeps its colour; -1 takes the next."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = -1


@dataclass(frozen=True)
class Interval:
    """One measured number with its 95 % interval and what chance would give; NaN where there is none."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    chance: float = math.nan
    series: str = ""
    emergent: bool = False


def curves(
    lines: Sequence[Curve], title: str, stages: Sequence[tuple[float, str]] = (), logarithmic: bool = False
) -> "Figure":
    """Values over steps, smoothed where they are many, raw in the background; `stages` are (first step, name)."""
    below = len(lines) > _LEGEND_INSIDE
    below_inches = 0.16 * math.ceil(len(lines) / 2) if below else 0.0
    with drawing(4.6, 2.75 + below_inches) as figure:
        axes = figure.subplots()
        for place, line in enumerate(lines):
            colour = line.colour if line.colour >= 0 else place
            style: dict[str, Any] = {"color": SERIES[colour % len(SERIES)]}
            dash: Any = DASHES[(place // len(SERIES)) % len(DASHES)]
            label: str | None = line.label
            for steps, values in _segments(line, [step for step, _ in stages]):
                steps, raw, smooth = _smoothed(steps, values)
                if raw is not None:
                    axes.plot(steps, raw, linewidth=0.7, alpha=0.28, **style)
                marker = "o" if len(steps) == 1 else None
                axes.plot(steps, smooth, linestyle=dash, marker=marker, label=label, **style)
                label = None  # one entry of the legend for all stages
        axes.set_title(title, pad=16 if stages else 8)
        axes.set_xlabel("step")
        if logarithmic:
            axes.set_yscale("log")
        axes.margins(x=0.01, y=0.08)
        for index, (step, name) in enumerate(stages):
            if index:
                axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            axes.annotate(
                name, (step, 1), (4 if index else 0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                color=MUTED, fontsize=7.5, annotation_clip=False,
            )  # fmt: skip
        if below:
            figure.legend(loc="outside lower center", ncols=2, handlelength=1.8, fontsize=7.5, labelspacing=0.25)
        elif len(lines) > 1 or (lines and lines[0].label != title):
            axes.legend(loc="best", ncols=1 if len(lines) < 5 else 2, handlelength=1.8)
        return figure


def intervals(values: Sequence[Interval], title: str) -> "Figure":
    """Measured numbers as dots with their 95 % intervals, one line each, chance as a tick; hollow means emergent."""
    labels = list(dict.fromkeys(value.label for value in values))
    series = list(dict.fromkeys(value.series for value in values))
    with drawing(7.6, 0.75 + (0.2 + 0.16 * len(series)) * max(len(labels), 1)) as figure:
        axes = figure.subplots()
        for label, chance in {value.label: value.chance for value in reversed(values)}.items():
            middle = labels.index(label)
            axes.plot([chance] * 2, [middle - 0.34, middle + 0.34], color=MUTED, linewidth=1.4, zorder=2)
        for value in values:
            place = series.index(value.series)
            y = labels.index(value.label) + (place - (len(series) - 1) / 2) * 0.6 / max(len(series), 1)
            colour = SERIES[place % len(SERIES)]
            if not math.isfinite(value.value):
                continue
            if math.isfinite(value.low) and math.isfinite(value.high):
                axes.plot([value.low, value.high], [y, y], color=colour, linewidth=3.2, alpha=0.38, zorder=3,
                          solid_capstyle="round")  # fmt: skip
            fill = SURFACE if value.emergent else colour
            marker = MARKERS[place % len(MARKERS)]
            axes.plot(value.value, y, marker, color=colour, markerfacecolor=fill, markersize=6.5, zorder=4)
            if len(series) == 1:
                right = value.high if math.isfinite(value.high) else value.value
                axes.annotate(number(value.value), (max(right, value.value), y), (7, 0), textcoords="offset points",
                              va="center", fontsize=8.5, color=INK)  # fmt: skip
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.margins(x=0.1)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_title(title)
        handles = [_handle(name, place) for place, name in enumerate(series) if name]
        if any(math.isfinite(value.chance) for value in values):
            handles.append(_handle("chance", 0, color=MUTED, marker="|", markersize=11, markeredgewidth=1.4))
        if any(value.emergent for value in values):
            handles.append(_handle("emergent pair", 0, color=MUTED, markerfacecolor=SURFACE))
        if handles:
            per_line = len(handles) if len(handles) < 9 else 6
            figure.legend(
                handles=handles,
                loc="outside upper right",
                ncols=per_line,
                fontsize=8,
                handletextpad=0.1,
                columnspacing=1.1,
            )
        return figure


def modality_gap(points: Mapping[str, Sequence[Sequence[float]]], explained: Sequence[float] = ()) -> "Figure":
    """Embeddings of each modality along their first two principal components."""
    with drawing(4.9, 4.0) as figure:
        axes = figure.subplots()
        for place, (name, pairs) in enumerate(points.items()):
            colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            axes.scatter(x, y, s=13, color=colour, marker=marker, alpha=0.5, linewidths=0, label=name)
            if x:
                axes.scatter(sum(x) / len(x), sum(y) / len(y), s=130, color=colour, marker=marker, edgecolors=SURFACE,
                             linewidths=1.6, zorder=5)  # fmt: skip
        shares = [f" ({100 * share:.0f} % of variance)" for share in explained[:2]] or ["", ""]
        axes.set_xlabel("first component" + shares[0])
        axes.set_ylabel("second component" + shares[-1])
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(loc="best", markerscale=1.8)
        return figure


def _handle(label: str, place: int, **changes: Any) -> Any:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {
        "color": SERIES[place % len(SERIES)],
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 6,
    }
    return Line2D([], [], linestyle="none", label=label, **(style | changes))


def _segments(line: Curve, starts: Sequence[float]) -> list[tuple[Sequence[float], Sequence[float]]]:
    """The line cut where a stage begins: a loss jumps there, and no smoothing should hide that."""
    stage = [sum(step >= start for start in starts) for step in line.steps]
    cuts = [0, *(i for i in range(1, len(stage)) if stage[i] != stage[i - 1]), len(stage)]
    return [(line.steps[a:b], line.values[a:b]) for a, b in itertools.pairwise(cuts) if b > a]


def _smoothed(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float] | None, list[float]]:
    """At most 400 means of neighbouring points, and a running mean of them; no raw line when there are few points."""
    stride = max(1, math.ceil(len(values) / 400))
    starts = range(0, len(values), stride)
    raw = [sum(values[i : i + stride]) / len(values[i : i + stride]) for i in starts]
    thinned = [steps[i] for i in starts]
    if len(raw) < 24:
        return thinned, None, raw
    reach = max(1, len(raw) // 50)
    windows = [raw[max(0, i - reach) : i + reach + 1] for i in range(len(raw))]
    return thinned, raw, [sum(window) / len(window) for window in windows]
