"""From runs to rows: medians of ratios, differences, and whether a bar is reached."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmalign.bench.base import NO_BAR, Benchmark, Ceilings, Quantity, Sample


@dataclass(frozen=True)
class Row:
    """One figure of the results.

    Attributes:
        benchmark, peer, quantity: what was compared with whom; the peer is "–" where there is none.
        ratio_median, ratio_min, ratio_max: mmalign over peer, over the pairs; for differences their size, without a
            peer the figure itself. None when nothing was measured.
        bar: what must be reached; NO_BAR where nothing must.
        holds: whether the median reaches it; never without a measurement or a bar.
        pairs: how many.
        unit, mmalign_median, peer_median: the two figures behind the ratio; None where there are none.
        note: why there is no figure, or what to know about it.
        roofline: why the bar is out of reach here, when it is.
    """

    benchmark: str
    peer: str
    quantity: str
    ratio_median: float | None
    ratio_min: float | None
    ratio_max: float | None
    bar: str
    holds: bool
    pairs: int = 0
    unit: str = ""
    mmalign_median: float | None = None
    peer_median: float | None = None
    note: str = ""
    roofline: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def reaches(value: float, bar: str) -> bool:
    """Whether a figure reaches a bar such as "<= 0.4"; never where there is none.

    Raises:
        ValueError: the bar is neither an upper nor a lower one.
    """
    sign, _, limit = bar.partition(" ")
    if math.isnan(value) or bar == NO_BAR:
        return False
    if sign not in ("<=", ">="):
        raise ValueError(f"bar {bar!r}: must be '<= NUMBER' or '>= NUMBER'")
    return value <= float(limit) if sign == "<=" else value >= float(limit)


def bars_held(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of those rows that have a bar reach it: "33 of 34"."""
    return f"{sum(row['holds'] for row in rows)} of {sum(row['bar'] != NO_BAR for row in rows)}"


def verdict(possible: float, bar: str, practical: float | None = None) -> str:
    """The end of a roofline: whether what the machine allows at best, `possible`, explains that the bar was missed.

    Args:
        practical: the same where operators are not fused.
    """
    if not reaches(possible, bar):
        return f"; the bar of {bar} is out of reach"
    sign, _, limit = bar.partition(" ")
    share = possible / float(limit) if sign == "<=" else float(limit) / possible
    asks = f"; the bar of {bar} asks for {share:.0%} of what the machine allows"
    if practical is not None and not reaches(practical, bar):
        return f"{asks}, and is out of reach of operators that are not fused"
    return f"{asks}, so this alone does not explain the miss"


def difference(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    """Largest difference of two arrays, see Quantity.kind; infinite where shapes differ or something is not finite."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    if a.size == 0:
        return 0.0
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    size = np.abs(b.astype(np.float64))
    if kind == "absolute":
        return float(gap.max())
    if kind == "relative":
        return float(gap.max() / max(size.max(), np.finfo(np.float64).tiny))
    return float((gap / np.maximum(size, np.finfo(np.float32).tiny)).max())


def rows(
    benchmark: Benchmark, pairs: Sequence[Mapping[str, Sample]], missing: Mapping[str, str], ceilings: Ceilings
) -> list[Row]:
    """The rows of a benchmark.

    Args:
        pairs: by side, what it measured; sides that are missing are not in it.
        missing: by side, why it could not run.
    """
    medians = {
        side: {key: statistics.median(p[side].measures[key] for p in pairs) for key in pairs[0][side].measures}
        for side in (pairs[0] if pairs else {})
    }
    return [_row(benchmark, quantity, pairs, missing, medians, ceilings) for quantity in benchmark.quantities]


def _row(
    benchmark: Benchmark,
    quantity: Quantity,
    pairs: Sequence[Mapping[str, Sample]],
    missing: Mapping[str, str],
    medians: Mapping[str, Mapping[str, float]],
    ceilings: Ceilings,
) -> Row:
    wanted = [quantity.side] + ([quantity.other] if quantity.other else [])
    absent = [missing[side] for side in wanted if side in missing]
    if absent or not pairs:
        note = "; ".join(dict.fromkeys(absent)) or "nothing was measured"
        return Row(
            benchmark.name, quantity.peer, quantity.label, None, None, None, quantity.bar, holds=False, note=note
        )
    figures = [_figure(quantity, pair) for pair in pairs]
    middle = statistics.median(figures)
    holds = reaches(middle, quantity.bar)
    scalar = quantity.kind == "ratio" and quantity.other is not None
    return Row(
        benchmark=benchmark.name,
        peer=quantity.peer,
        quantity=quantity.label,
        ratio_median=middle,
        ratio_min=min(figures),
        ratio_max=max(figures),
        bar=quantity.bar,
        holds=holds,
        pairs=len(figures),
        unit=quantity.unit if quantity.kind == "ratio" else "",
        mmalign_median=medians[quantity.side][quantity.measure] if scalar else None,
        peer_median=medians[quantity.other][quantity.measure] if scalar and quantity.other else None,
        note=benchmark.note(quantity),
        roofline="" if holds or quantity.bar == NO_BAR else benchmark.roofline(quantity, medians, ceilings),
    )


def _figure(quantity: Quantity, pair: Mapping[str, Sample]) -> float:
    one = pair[quantity.side]
    if quantity.other is None:
        return float(one.measures[quantity.measure])
    other = pair[quantity.other]
    if quantity.kind == "ratio":
        return one.measures[quantity.measure] / max(other.measures[quantity.measure], 1e-12)
    names = [name for name in one.arrays.keys() | other.arrays.keys() if name.partition(".")[0] == quantity.measure]
    nothing = np.full(1, np.nan)
    return max(
        difference(one.arrays.get(name, nothing), other.arrays.get(name, nothing), quantity.kind) for name in names
    )
