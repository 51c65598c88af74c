"""The picture of growth: time and memory of every part over its size."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.bench.growth import MEMORY_FLOOR_MIB
from mmalign.report.style import INK, MARKERS, MUTED, SERIES, SURFACE, drawing, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_GAP = 0.075
"""Between two labels, as a share of the panel's height."""


def save_plot(growth: Sequence[dict[str, Any]], path: Path) -> None:
    path.write_bytes(png(growth_figure(growth)))


def growth_figure(growth: Sequence[dict[str, Any]]) -> "Figure":
    """Two panels with logarithmic axes; a line's label says its fitted exponent."""
    with drawing(9.2, 3.9) as figure:
        for axes, memory in zip(figure.subplots(1, 2), (False, True), strict=True):
            _panel(axes, growth, memory)
        return figure


def _panel(axes: Any, growth: Sequence[dict[str, Any]], memory: bool) -> None:
    lines, widest = [], 8.0
    for place, entry in enumerate(growth):
        x = [size / entry["sizes"][0] for size in entry["sizes"]]
        y = [max(b / 2**20, MEMORY_FLOOR_MIB) for b in entry["bytes"]] if memory else entry["seconds"]
        axes.plot(x, y, color=SERIES[place], marker=MARKERS[place], markersize=5, zorder=3)
        power = entry["memory_exponent" if memory else "time_exponent"]
        lines.append((y, f"{entry['task']}  n^{power:.2f}".replace("-", "−"), SERIES[place]))
        widest = max(widest, x[-1])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    values = [value for y, _, _ in lines for value in y]
    low, high = min(values) / 2, max(values) * 1.6
    axes.set_ylim(low, high)
    axes.set_xlim(0.93, widest * 1.07)
    for power, name in ((1, "linear"),) if memory else ((1, "linear"), (2, "quadratic")):
        _guide(axes, power, name, low * 1.25, widest)
    axes.set_xticks([1, 2, 4, 8], ["1×", "2×", "4×", "8×"])
    ticks = [10.0**k for k in range(-4, 6) if low <= 10.0**k <= high]
    axes.set_yticks(ticks, [f"{tick:,g} {'MiB' if memory else 's'}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("size, relative to the smallest")
    axes.set_title("Peak memory beyond the inputs" if memory else "Time")
    _label(axes, [(y[-1], text, colour) for y, text, colour in lines])


def _guide(axes: Any, power: int, name: str, start: float, widest: float) -> None:
    """A dashed line of this slope, named on its way."""
    axes.plot([1, widest], [start, start * widest**power], color=MUTED, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
    axes.annotate(
        name, (3.0, start * 3.0**power), color=MUTED, fontsize=7.5, ha="center", va="center", zorder=2,
        bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def _label(axes: Any, lines: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right end of the lines, pushed apart where they would overlap."""
    low, high = axes.get_ylim()

    span = math.log(high / low)
    places: list[float] = []
    for value, text, colour in sorted(lines):
        wanted = math.log(value / low) / span
        place = max(wanted, places[-1] + _LEAST_GAP) if places else max(wanted, 0.03)
        places.append(place)
        axes.plot([1.0, 1.05], [wanted, place], transform=axes.transAxes, color=colour, linewidth=1.2, clip_on=False)
        axes.annotate(text, (1.06, place), xycoords="axes fraction", color=INK, fontsize=8.5, va="center")
