"""The figures of forgetting: the matrix as a heat map, and what an arm keeps against what it learns."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmalign.report.style import GRID, HEAT, INK, MARKERS, MUTED, SERIES, SURFACE, drawing, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mmalign.evaluation.forgetting import Matrix


@dataclass(frozen=True)
class Tradeoff:
    """One arm, or one point of an alpha sweep: retention in percent, score on the new task, their spread over seeds.

    `cost` is the size of the point, in any one unit; NaN means unknown. Points of one `curve` are joined in order.
    """

    label: str
    retention: float
    new_task: float
    retention_std: float = 0.0
    new_task_std: float = 0.0
    cost: float = math.nan
    curve: str = ""


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    higher_is_better: Sequence[bool],
    title: str = "",
    best: Sequence[float] | None = None,
    boxed: Sequence[tuple[int, int]] = (),
    chances: Sequence[float] = (),
) -> "Figure":
    """A forgetting matrix: one row per moment of evaluation, one column per ability.

    The shade of a cell is its share of the best value of its column, whichever way is up, times what of it is above the
    column's chance, if `chances` has it: what was never learned stays empty. What was not measured is hatched.
    `best` gives the best values when several matrices share a scale. The last row also says what has been lost against
    the best earlier value. `boxed` cells (row, column) are those whose stage taught that column.
    """
    with drawing(1.5 + 1.22 * len(columns), 0.95 + 0.5 * len(rows)) as figure:
        axes = figure.subplots()
        for j, higher in enumerate(higher_is_better):
            column = [row[j] for row in values]
            top = best[j] if best is not None else best_of(column, higher)
            for i, value in enumerate(column):
                earlier = best_of(column[:-1], higher) if i == len(rows) - 1 and i else math.nan
                goodness = share_of_best(value, top, higher)
                if chances and math.isfinite(chances[j]) and math.isfinite(value):
                    goodness *= 1 - share_of_best(chances[j], value, higher)
                _cell(axes, i, j, value, goodness, _loss(value, earlier, higher))
        from matplotlib.patches import Rectangle

        for i, j in boxed:
            axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, edgecolor=INK, linewidth=1.3))
        arrows = [f"{name} {'↑' if higher else '↓'}" for name, higher in zip(columns, higher_is_better, strict=True)]
        axes.set_xticks(range(len(columns)), [_wrapped(name) for name in arrows])
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0, labelcolor=INK)
        axes.xaxis.tick_top()
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if title:
            axes.set_title(title, pad=10)
        return figure


def matrix_heat_map(matrix: "Matrix", best: Sequence[float] | None = None) -> "Figure":
    """`heat_map` of a run's matrix, with a frame where a stage first trained a column."""
    values = [[float(value) for value in row] for row in matrix.values]
    boxed = [(stage, j) for j, stage in enumerate(matrix.trained_at) if stage > 0]
    return heat_map(values, matrix.moments, matrix.columns, matrix.higher_is_better, "", best, boxed, matrix.chances)


def stability_plasticity(points: Sequence[Tradeoff], new_task: str, cost: str = "cost") -> "Figure":
    """Score on the new task against what was retained of the old; the upper right corner is the goal.

    `cost` says what the size of a point is.
    """
    known = [point for point in points if math.isfinite(point.retention) and math.isfinite(point.new_task)]
    costs = [point.cost for point in known if math.isfinite(point.cost)]
    largest = max(costs, default=math.nan)
    with drawing(7.6, 4.3) as figure:
        axes = figure.subplots()
        for name in dict.fromkeys(point.curve for point in known if point.curve):
            joined = [point for point in known if point.curve == name]
            axes.plot([p.retention for p in joined], [p.new_task for p in joined], color=MUTED, linewidth=1.3,
                      linestyle=(0, (4, 2)), zorder=2)  # fmt: skip
        arms = list(dict.fromkeys(point.label for point in known if not point.curve))
        for point in known:
            if point.curve:
                style: dict[str, Any] = {"s": 22, "color": MUTED, "marker": "o"}
            else:
                place = arms.index(point.label)
                size = 60 + 260 * point.cost / largest if math.isfinite(point.cost) and largest > 0 else 90
                style = {"s": size, "color": SERIES[place % 8], "marker": MARKERS[(place // 8) % 8], "alpha": 0.88}
                axes.errorbar(point.retention, point.new_task, xerr=point.retention_std, yerr=point.new_task_std,
                              fmt="none", ecolor=SERIES[place % 8], elinewidth=1.2, alpha=0.7, zorder=3)  # fmt: skip
            axes.scatter(point.retention, point.new_task, zorder=4, edgecolors=SURFACE, linewidths=1, **style)
        axes.set_xlabel("retention of old abilities, % →")
        axes.set_ylabel(f"new task: {new_task} →")
        axes.margins(0.12, 0.14)
        if math.isfinite(largest):
            axes.set_title(f"size of a point: {cost}", fontsize=8, color=MUTED,
                           fontweight="normal", loc="right")  # fmt: skip
        _place_labels(figure, axes, known)
        return figure


def best_of(column: Sequence[float], higher_is_better: bool) -> float:
    """The best finite value; NaN when there is none."""
    finite = [value for value in column if math.isfinite(value)]
    return (max(finite) if higher_is_better else min(finite)) if finite else math.nan


def share_of_best(value: float, best: float, higher_is_better: bool) -> float:
    """How good a value is, 0 … 1: value/best where higher is better, best/value where lower is; NaN when unknown."""
    if not (math.isfinite(value) and math.isfinite(best)):
        return math.nan
    if value == best:
        return 1.0
    good, limit = (value, best) if higher_is_better else (best, value)
    return min(max(good / limit, 0.0), 1.0) if limit > 0 else 0.0


def _loss(value: float, earlier_best: float, higher_is_better: bool) -> float:
    lost = earlier_best - value if higher_is_better else value - earlier_best
    return lost if math.isfinite(lost) and lost >= 0.0005 else 0.0


def _cell(axes: Any, i: int, j: int, value: float, goodness: float, lost: float) -> None:
    from matplotlib.patches import Rectangle

    place = (j - 0.475, i - 0.46)
    if not math.isfinite(goodness):
        axes.add_patch(Rectangle(place, 0.95, 0.92, facecolor="none", edgecolor=GRID, hatch="////", linewidth=0))
        return
    opacity = 0.06 + 0.84 * goodness**1.6
    axes.add_patch(Rectangle(place, 0.95, 0.92, facecolor=HEAT, alpha=opacity, linewidth=0))
    colour = "#ffffff" if opacity > 0.72 else INK
    axes.text(j, i - (0.12 if lost else 0), number(value), ha="center", va="center", color=colour, fontsize=9.5)
    if lost:
        axes.text(j, i + 0.24, f"lost {number(lost)}", ha="center", va="center", color=colour, fontsize=7)


def _wrapped(name: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(name.replace("_", " "), 15, break_long_words=True)[:3])


def _place_labels(figure: Any, axes: Any, points: Sequence[Tradeoff]) -> None:
    """Write each point's label beside it, on the first of eight sides where it covers nothing, or else the least."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    centres = [axes.transData.transform((point.retention, point.new_task)) for point in points]
    scale = figure.dpi / 72
    taken = [Bbox.from_bounds(x - 6 * scale, y - 6 * scale, 12 * scale, 12 * scale) for x, y in centres]
    sides = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    for name in dict.fromkeys(point.curve for point in points if point.curve):
        path = [centre for centre, point in zip(centres, points, strict=True) if point.curve == name]
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            along = [(x0 + t / 40 * (x1 - x0), y0 + t / 40 * (y1 - y0)) for t in range(41)]
            taken += [Bbox.from_bounds(x - scale, y - scale, 2 * scale, 2 * scale) for x, y in along]
    for point in points:
        if not point.curve:  # the bars of the deviations
            stds = [std if math.isfinite(std) else 0.0 for std in (point.retention_std, point.new_task_std)]
            ends = [(point.retention + sign * stds[0], point.new_task + sign * stds[1]) for sign in (-1, 1)]
            (left, low), (right, high) = axes.transData.transform(ends)
            x, y = (left + right) / 2, (low + high) / 2
            taken.append(Bbox([[left, y - scale], [right, y + scale]]))
            taken.append(Bbox([[x - scale, low], [x + scale, high]]))
    inside = axes.bbox
    for point in points:
        best = None
        for right, up in sides:
            text = axes.annotate(
                point.label, (point.retention, point.new_task), (11 * right, 11 * up), textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[right], va={1: "bottom", 0: "center", -1: "top"}[up],
                fontsize=7.5 if point.curve else 9, color=MUTED if point.curve else INK, zorder=6,
            )  # fmt: skip
            box = text.get_window_extent()
            overlaps = sum(box.overlaps(other) for other in taken)
            overlaps += 0 if inside.x0 <= box.x0 and box.x1 <= inside.x1 else 5
            if best is None or overlaps < best[0]:
                if best is not None:
                    best[1].remove()
                best = (overlaps, text, box)
            else:
                text.remove()
            if overlaps == 0:
                break
        assert best is not None
        taken.append(best[2])
