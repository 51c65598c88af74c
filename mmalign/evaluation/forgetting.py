"""What a run learned and lost, from its matrix R[t][j]: the main score of column j at moment t.

Moment 0 is before the first stage, moment t after stage t; T is the last. Every column j has a stage s(j) that trained
it; s(j) = 0 means that no stage did: an ability that the model brought along, as a pretrained tower its language.

Signs: all differences are taken so that a gain is positive and a loss negative (forgetting: a loss is positive),
whichever way the column's metric points. Levels (averages of scores) stand in the metric's own unit and exist only for
columns that point the same way: recalls and bits per byte have no common mean. `Matrix.select` takes the columns that
belong together.

NaN: a score that was not measured takes no part; what nothing is left of is NaN, never 0.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmalign.evaluation.table import Row


@dataclass(frozen=True)
class Matrix:
    """The matrix R[t][j] of one run.

    Attributes:
        moments: "start", then the stages' names.
        columns: names of the evaluators.
        values: [moments, columns], NaN where nothing was measured.
        higher_is_better: by column.
        trained_at: by column, the stage s(j) that first trained it, or 0.
        metrics: by column, what its main score is.
        chances: by column, what it is without any knowledge, NaN where that is not known; empty means unknown.
    """

    moments: list[str]
    columns: list[str]
    values: np.ndarray
    higher_is_better: list[bool]
    trained_at: list[int]
    metrics: list[str]
    chances: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (len(self.moments), len(self.columns))
        if self.values.shape != shape:
            raise ValueError(f"the matrix has shape {self.values.shape}, its names say {shape}")
        if any(not 0 <= s < max(1, len(self.moments)) for s in self.trained_at):
            raise ValueError(f"trained_at {self.trained_at} names a stage beyond the last, {len(self.moments) - 1}")

    def select(self, columns: Iterable[str]) -> "Matrix":
        """Only these columns, in this order."""
        index = [self.columns.index(name) for name in columns]

        def pick(values: list) -> list:
            return [values[i] for i in index]

        return Matrix(
            self.moments,
            pick(self.columns),
            self.values[:, index],
            pick(self.higher_is_better),
            pick(self.trained_at),
            pick(self.metrics),
            pick(self.chances) if self.chances else [],
        )

    @property
    def sign(self) -> np.ndarray:
        """+1 for columns where higher is better, else -1."""
        return np.where(np.asarray(self.higher_is_better, dtype=bool), 1.0, -1.0)


def matrix_from_rows(rows: Iterable[Row], trained_at: dict[str, int] | None = None) -> Matrix:
    """The matrix of one run from the main rows of its table.

    Args:
        trained_at: s(j) by column. Columns that it does not name count as trained at the first stage after which their
            pair of modalities is no longer emergent, or 0 if it never was; data sets that share a pair need naming.

    Raises:
        ValueError: two main rows for one column at one moment, or a column whose metric changes direction.
    """
    cells: dict[tuple[int, str], Row] = {}
    for row in rows:
        if not row.main:
            continue
        if (row.stage_index, row.column) in cells:
            raise ValueError(f"column {row.column!r} has two main scores after stage {row.stage!r} of run {row.run!r}")
        cells[row.stage_index, row.column] = row
    columns = list(dict.fromkeys(column for _, column in cells))
    names = {index: row.stage for (index, _), row in cells.items()}
    moments = [names.get(index, str(index)) for index in range(max(names, default=-1) + 1)]
    values = np.full((len(moments), len(columns)), np.nan)
    for (index, column), row in cells.items():
        values[index, columns.index(column)] = row.value
    first = [[row for (_, name), row in sorted(cells.items()) if name == column] for column in columns]
    for column, found in zip(columns, first, strict=True):
        if len({row.higher_is_better for row in found}) > 1:
            raise ValueError(f"column {column!r}: higher is better at one moment and not at another")
    stages = {column: _first_trained(found) for column, found in zip(columns, first, strict=True)} | (trained_at or {})
    return Matrix(
        moments,
        columns,
        values,
        [found[0].higher_is_better for found in first],
        [stages[column] for column in columns],
        [found[0].metric for found in first],
        [found[0].chance for found in first],
    )


def _first_trained(rows: list[Row]) -> int:
    if not rows[0].emergent:
        return 0
    return next((row.stage_index for row in rows if not row.emergent), 0)


# --- per column: one number for each, NaN where the definition does not apply --------------------------------------


def backward_transfer_by_column(matrix: Matrix) -> np.ndarray:
    """R[T][j] - R[s(j)][j] for columns trained before the last stage (Lopez-Paz and Ranzato 2017)."""
    last = len(matrix.moments) - 1
    return _by_column(matrix, lambda r, s: r[last] - r[s] if s < last else math.nan)


def forward_transfer_by_column(matrix: Matrix) -> np.ndarray:
    """R[s(j)-1][j] - R[0][j] for columns trained after stage 1 (Lopez-Paz and Ranzato 2017; their baseline is the score
    of the untrained model, here the score before the first stage)."""
    return _by_column(matrix, lambda r, s: r[s - 1] - r[0] if s >= 2 else math.nan)


def forgetting_by_column(matrix: Matrix) -> np.ndarray:
    """max over t < T of R[t][j], minus R[T][j], for columns trained before the last stage (Chaudhry et al. 2018).

    Negative if the last score is the best one. The moment before stage 1 belongs to the past: a pretrained ability has
    its best score there.
    """
    last = len(matrix.moments) - 1
    return _by_column(matrix, lambda r, s: _best(r[:last]) - r[last] if s < last else math.nan)


def retention_by_column(matrix: Matrix) -> np.ndarray:
    """What is left of the best past score, in percent, for columns trained before the last stage.

    100 R[T] / max R[t] where higher is better, 100 min R[t] / R[T] where lower is better; NaN unless both are positive
    (0 of something is 0 %).
    """
    last = len(matrix.moments) - 1
    result = np.full(len(matrix.columns), np.nan)
    for j, (higher, s) in enumerate(zip(matrix.higher_is_better, matrix.trained_at, strict=True)):
        if s >= last:
            continue
        best, now = _best(matrix.values[:last, j] * matrix.sign[j]) * matrix.sign[j], matrix.values[last, j]
        numerator, denominator = (now, best) if higher else (best, now)
        if denominator > 0 and numerator >= 0:
            result[j] = 100 * numerator / denominator
    return result


# --- over columns ---------------------------------------------------------------------------------------------------


def average(matrix: Matrix) -> float:
    """ACC = 1/N sum_j R[T][j] (Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", 2017)."""
    return _level(matrix, [list(matrix.values[-1])] if len(matrix.moments) else [])


def backward_transfer(matrix: Matrix) -> float:
    """BWT = 1/(T-1) sum_{i<T} (R[T][i] - R[i][i]) (Lopez-Paz and Ranzato 2017)."""
    return _mean(backward_transfer_by_column(matrix))


def forward_transfer(matrix: Matrix) -> float:
    """FWT = 1/(T-1) sum_{i>=2} (R[i-1][i] - b[i]) (Lopez-Paz and Ranzato 2017)."""
    return _mean(forward_transfer_by_column(matrix))


def forgetting(matrix: Matrix) -> float:
    """F = 1/(T-1) sum_{j<T} (max_{l<T} R[l][j] - R[T][j]) (Chaudhry et al., "Riemannian Walk for Incremental Learning",
    2018)."""
    return _mean(forgetting_by_column(matrix))


def retention_percent(matrix: Matrix) -> float:
    """Mean over columns of what is left of the best past score, in percent; a ratio, so that columns may be mixed."""
    return _mean(retention_by_column(matrix))


def mtil(matrix: Matrix) -> dict[str, float]:
    """Transfer, Avg and Last over the tasks, which are the columns with s(j) >= 1 (Zheng et al., "Preventing Zero-Shot
    Transfer Degradation in Continual Learning of Vision-Language Models" (ZSCL), 2023).

    Transfer: 1/(N-1) sum_{j>=2} 1/(s(j)-1) sum_{1<=i<s(j)} R[i][j], the scores of tasks not learned yet;
    Avg: 1/N sum_j 1/T sum_{1<=i<=T} R[i][j]; Last: 1/N sum_j R[T][j].
    """
    tasks = _tasks(matrix)
    if len(matrix.moments) < 2:
        return dict.fromkeys(("transfer", "average", "last"), math.nan)
    columns = list(zip(tasks.values.T, tasks.trained_at, strict=True))
    return {
        "transfer": _level(tasks, [[_mean(r[1:s]) for r, s in columns]]),
        "average": _level(tasks, [[_mean(r[1:]) for r, _ in columns]]),
        "last": _level(tasks, [[r[-1] for r, _ in columns]]),
    }


def tic(matrix: Matrix) -> dict[str, float]:
    """In-domain, backward and forward over the tasks, the columns with s(j) >= 1 (Garg et al., "TiC-CLIP: Continual
    Training of CLIP Models", 2024): the means of the entries R[i][j], 1 <= i <= T, on the diagonal i = s(j), below it
    (i > s(j), tasks of the past) and above it (i < s(j), tasks of the future)."""
    tasks = _tasks(matrix)
    entries: dict[str, list[list[float]]] = {"in_domain": [], "backward": [], "forward": []}
    for i in range(1, len(matrix.moments)):
        row = list(zip(tasks.values[i], tasks.trained_at, strict=True))
        entries["in_domain"].append([r if i == s else math.nan for r, s in row])
        entries["backward"].append([r if i > s else math.nan for r, s in row])
        entries["forward"].append([r if i < s else math.nan for r, s in row])
    return {name: _level(tasks, found) for name, found in entries.items()}


def summary(matrix: Matrix) -> dict[str, float]:
    """Every metric above by name; those of MTIL and TiC as "mtil_transfer", "tic_backward", …"""
    singles: dict[str, Callable[[Matrix], float]] = {
        "average": average,
        "backward_transfer": backward_transfer,
        "forward_transfer": forward_transfer,
        "forgetting": forgetting,
        "retention_percent": retention_percent,
    }
    result = {name: function(matrix) for name, function in singles.items()}
    result |= {f"mtil_{name}": value for name, value in mtil(matrix).items()}
    return result | {f"tic_{name}": value for name, value in tic(matrix).items()}


def _tasks(matrix: Matrix) -> Matrix:
    return matrix.select(name for name, s in zip(matrix.columns, matrix.trained_at, strict=True) if s >= 1)


def _by_column(matrix: Matrix, difference: Callable[[np.ndarray, int], float]) -> np.ndarray:
    """`difference` of each column, oriented so that higher is better, and its s(j)."""
    oriented = matrix.values * matrix.sign
    if len(matrix.moments) == 0:
        return np.full(len(matrix.columns), np.nan)
    return np.array([difference(oriented[:, j], s) for j, s in enumerate(matrix.trained_at)], dtype=np.float64)


def _level(matrix: Matrix, entries: Sequence[Sequence[float]]) -> float:
    """Mean of the entries that exist, if their columns all point the same way."""
    return _mean(np.array(entries, dtype=np.float64)) if len(set(matrix.higher_is_better)) == 1 else math.nan


def _best(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else math.nan


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
