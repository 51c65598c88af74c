"""A measured number with what stands beside it, and how it becomes a row of the table."""

import math
from dataclasses import dataclass, field, replace

from mmalign.evaluation.base import Moment
from mmalign.evaluation.table import Row


@dataclass(frozen=True)
class Score:
    """One number with its 95 % interval and what a model that knows nothing would score; NaN where undefined."""

    value: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    chance: float = math.nan
    higher_is_better: bool = True


@dataclass(frozen=True)
class RowMaker:
    """What all rows of an evaluator at one moment have in common."""

    moment: Moment
    column: str
    dataset: str
    split: str
    text_hash: str = field(default="")

    def row(
        self,
        direction: str,
        metric: str,
        score: Score,
        main: bool = False,
        emergent: bool = False,
        n_queries: int = 0,
        n_gallery: int = 0,
        n_missing: int = 0,
    ) -> Row:
        """One row; sizes and flags as in `Row`."""
        return Row(
            run=self.moment.run,
            stage=self.moment.stage,
            stage_index=self.moment.stage_index,
            step=self.moment.step,
            column=self.column,
            dataset=self.dataset,
            split=self.split,
            direction=direction,
            metric=metric,
            value=score.value,
            higher_is_better=score.higher_is_better,
            main=main,
            emergent=emergent,
            ci_low=score.ci_low,
            ci_high=score.ci_high,
            chance=score.chance,
            n_queries=n_queries,
            n_gallery=n_gallery,
            n_missing=n_missing,
            seed=self.moment.seed,
            text_hash=self.text_hash,
        )


def with_main(rows: list[Row], direction: str, metric: str) -> list[Row]:
    """The same rows, the one of this direction and metric marked as the column's main score.

    Raises:
        ValueError: there is no such row; names those that there are.
    """
    if not any(row.direction == direction and row.metric == metric for row in rows):
        known = sorted({f"{row.direction} {row.metric}" for row in rows})
        raise ValueError(f"there is no main score {direction} {metric}; there are {', '.join(known) or 'none'}")
    return [replace(row, main=row.direction == direction and row.metric == metric) for row in rows]
