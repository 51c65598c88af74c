"""The picture of growth: time and memory of every part, relative to its smallest size."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.report.style import GRID, INK, MARKERS, MUTED, SERIES, drawing, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_GAP = 0.075
"""Between two labels, as a share of the panel's height."""


def save_plot(growth: Sequence[dict[str, Any]], path: Path) -> None:
    path.write_bytes(png(growth_figure(growth)))


def growth_figure(growth: Sequence[dict[str, Any]]) -> "Figure":
    """Two panels with logarithmic axes; a line's label says its fitted exponent."""
    with drawing(9.2, 3.9) as figure:
        panels = figure.subplots(1, 2)
        _panel(panels[0], growth, "seconds", "time_exponent", "Time")
        _panel(panels[1], growth, "bytes", "memory_exponent", "Peak memory")
        return figure


def _panel(axes: Any, growth: Sequence[dict[str, Any]], measure: str, exponent: str, title: str) -> None:
    lines = []
    for place, entry in enumerate(growth):
        x = [size / entry["sizes"][0] for size in entry["sizes"]]
        y = [max(value, 1e-9) / max(entry[measure][0], 1e-9) for value in entry[measure]]
        axes.plot(x, y, color=SERIES[place], marker=MARKERS[place], markersize=5, zorder=3)
        lines.append((y[-1], f"{entry['task']}  n^{entry[exponent]:.2f}", SERIES[place]))
    steps = [1, 2, 4, 8]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    top = max([value for value, _, _ in lines] + [2.0]) * 1.35
    axes.set_ylim(min([value for value, _, _ in lines] + [1.0]) / 1.35, top)
    axes.set_xlim(0.93, 8.6)
    for power, name in ((1, "linear"), (2, "quadratic")):
        axes.plot(steps, [step**power for step in steps], color=GRID, linestyle=(0, (4, 3)), linewidth=1.4, zorder=1)
        at = min(4.0, (top / 1.6) ** (1 / power))
        axes.annotate(name, (at, at**power), (-3, 3), textcoords="offset points", color=MUTED, fontsize=7.5, ha="right")
    axes.set_xticks(steps, [f"{step}×" for step in steps])
    ticks = [2.0**k for k in range(0, 13, 2 if top > 32 else 1) if 2.0**k <= top]
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("size, relative to the smallest")
    axes.set_title(f"{title}, relative to the smallest size")
    _label(axes, lines)


def _label(axes: Any, lines: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right end of the lines, pushed apart where they would overlap."""
    low, high = axes.get_ylim()

    span = math.log(high / low)
    places: list[float] = []
    for value, text, colour in sorted(lines):
        wanted = math.log(value / low) / span
        place = max(wanted, places[-1] + _LEAST_GAP) if places else max(wanted, 0.03)
        places.append(place)
        axes.annotate(
            text, (1, wanted), (1.06, place), xycoords="axes fraction", textcoords="axes fraction", color=INK,
            fontsize=8.5, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2, "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip
