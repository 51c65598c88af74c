"""The forgetting matrix of a run: which columns are old, which are new, and what became of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmalign.evaluation.forgetting import Matrix, matrix_from_rows
from mmalign.evaluation.table import Row
from mmalign.report.run import Run


def run_matrix(run: Run, rows: Sequence[Row] | None = None) -> Matrix:
    """The matrix of a run; `rows` in place of the run's own, for what a sweep changed."""
    rows = run.rows if rows is None else rows
    matrix = matrix_from_rows(rows)
    stages = run.config.get("stages")
    columns = run.config.get("evaluation")
    if not isinstance(stages, dict) or not isinstance(columns, dict):
        return matrix
    seen = [list(_shard_data(stage)) for stage in stages.values()]
    directions = {row.column: row.direction for row in rows if row.main}
    named = {}
    for column, trained_at in zip(matrix.columns, matrix.trained_at, strict=True):
        own = {directory for directory, _ in _shard_data(columns.get(column))}
        pair = {name.partition("[")[0] for name in directions.get(column, "").split("->")}  # "text[fr]" is text
        # A pair may be trained on one data set first and on another later: the later one's column is new then.
        used = [any(place in own and (not has or pair <= has) for place, has in stage) for stage in seen]
        later = [t for t, here in enumerate(used, 1) if t >= trained_at > 0 and here]
        if later and later[0] < len(matrix.moments):
            named[column] = later[0]
    return matrix_from_rows(rows, named)


def old_columns(rows: Sequence[Row], matrix: Matrix) -> list[str]:
    """Columns from before the last stage that had something to lose: whose best past score was not at chance."""
    last = len(matrix.moments) - 1
    found = []
    for column, trained_at in zip(matrix.columns, matrix.trained_at, strict=True):
        past = [r for r in rows if r.main and r.column == column and r.stage_index < last and math.isfinite(r.value)]
        if trained_at < last and any(_beats_chance(row) for row in past):
            found.append(column)
    return found


def new_columns(matrix: Matrix) -> list[str]:
    """Columns that the last stage trained first."""
    last = len(matrix.moments) - 1
    return [name for name, t in zip(matrix.columns, matrix.trained_at, strict=True) if t == last and last > 0]


def mean_matrix(matrices: Sequence[Matrix]) -> Matrix:
    """The mean over seeds, cell by cell, of matrices with the same moments and columns; NaN where no seed measured."""
    first = matrices[0]
    for other in matrices[1:]:
        if (other.moments, other.columns) != (first.moments, first.columns):
            raise ValueError("runs of one arm have different stages or columns; their matrices have no mean")
    stacked = np.stack([matrix.values for matrix in matrices])
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum(0)
    count = known.sum(0)
    return replace(first, values=np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _beats_chance(row: Row) -> bool:
    if not math.isfinite(row.chance):
        return True
    bound = row.ci_low if row.higher_is_better else row.ci_high
    bound = bound if math.isfinite(bound) else row.value
    return bound > row.chance if row.higher_is_better else bound < row.chance


def _shard_data(value: Any) -> Iterator[tuple[str, set[str]]]:
    """Directories of shards, each with the modalities that are read from it; none named means whatever is there."""
    if isinstance(value, dict):
        if isinstance(value.get("shards"), str):
            yield value["shards"].rstrip("/"), set(value.get("modalities") or ())
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _shard_data(item)
