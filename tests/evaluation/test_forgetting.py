"""The matrix's metrics on matrices worked out by hand, and against naive loops written from the papers."""

import math

import numpy as np
import pytest

from mmalign.evaluation.forgetting import Matrix, forgetting_by_column, matrix_from_rows, retention_by_column, summary
from mmalign.evaluation.table import Row

NAN = math.nan


def matrix(values: list[list[float]] | np.ndarray, trained_at: list[int], higher: list[bool] | None = None) -> Matrix:
    values = np.array(values, dtype=float)
    moments = ["start", *(f"s{t}" for t in range(1, len(values)))]
    columns = [f"c{j}" for j in range(values.shape[1])]
    return Matrix(moments, columns, values, higher or [True] * len(columns), trained_at, ["R@1"] * len(columns))


def test_three_tasks_by_hand() -> None:
    result = summary(matrix([[0.1, 0.1, 0.2], [0.8, 0.3, 0.1], [0.6, 0.9, 0.4], [0.5, 0.95, 0.7]], [1, 2, 3]))
    expected = {
        "average": (0.5 + 0.95 + 0.7) / 3,
        "backward_transfer": ((0.5 - 0.8) + (0.95 - 0.9)) / 2,
        "forward_transfer": ((0.3 - 0.1) + (0.4 - 0.2)) / 2,
        "forgetting": ((0.8 - 0.5) + (0.9 - 0.95)) / 2,
        "retention_percent": (100 * 0.5 / 0.8 + 100 * 0.95 / 0.9) / 2,
        "mtil_transfer": (0.3 + (0.1 + 0.4) / 2) / 2,
        "mtil_average": (0.8 + 0.6 + 0.5 + 0.3 + 0.9 + 0.95 + 0.1 + 0.4 + 0.7) / 9,
        "mtil_last": (0.5 + 0.95 + 0.7) / 3,
        "tic_in_domain": (0.8 + 0.9 + 0.7) / 3,
        "tic_backward": (0.6 + 0.5 + 0.95) / 3,
        "tic_forward": (0.3 + 0.1 + 0.4) / 3,
    }
    assert result == pytest.approx(expected, abs=1e-12)


def test_pretrained_language_in_bits_per_byte() -> None:
    """1.0 bit at the start, 0.9 after stage 1, 1.5 after stage 2: 0.6 bits are forgotten, 60 % are left."""
    bits = matrix([[1.0], [0.9], [1.5]], [0], [False])
    result = summary(bits)
    assert result["forgetting"] == pytest.approx(0.6)
    assert result["backward_transfer"] == pytest.approx(-0.5)
    assert result["retention_percent"] == pytest.approx(60)
    assert result["average"] == pytest.approx(1.5)
    assert math.isnan(result["mtil_last"])  # no stage trained it: no task


def test_columns_of_opposite_directions_have_no_common_level_but_a_common_sign_of_change() -> None:
    mixed = matrix([[0.5, 1.0], [0.9, 1.0], [0.6, 1.2]], [1, 0], [True, False])
    assert forgetting_by_column(mixed) == pytest.approx([0.3, 0.2])
    assert math.isnan(summary(mixed)["average"])
    assert summary(mixed.select(["c0"]))["average"] == pytest.approx(0.6)


def test_nothing_measured_is_nan_and_zero_is_zero() -> None:
    empty = summary(matrix([[NAN, NAN], [NAN, NAN]], [0, 0]))
    assert all(math.isnan(value) for value in empty.values())
    assert retention_by_column(matrix([[0.0], [0.5], [0.0]], [1])) == pytest.approx([0.0])
    assert np.isnan(retention_by_column(matrix([[0.0], [0.0], [0.0]], [1]))).all()


def nanmean(terms: list[float]) -> float:
    known = [term for term in terms if not math.isnan(term)]
    return sum(known) / len(known) if known else NAN


def oracle(r: list[list[float]], s: list[int], higher: list[bool]) -> dict[str, float]:
    """Loops over the published sums; `r` has a row before the first stage."""
    n, last = len(s), len(r) - 1
    up = [[r[t][j] if higher[j] else -r[t][j] for j in range(n)] for t in range(last + 1)]
    backward, forward, lost, left = [], [], [], []
    for j in range(n):
        if s[j] < last:
            backward.append(up[last][j] - up[s[j]][j])
            past = [up[t][j] for t in range(last) if not math.isnan(up[t][j])]
            lost.append(max(past) - up[last][j] if past else NAN)
            if past:
                best = abs(max(past))
                left.append(100 * (r[last][j] / best if higher[j] else best / r[last][j]))
        if s[j] > 1:
            forward.append(up[s[j] - 1][j] - up[0][j])
    tasks = [j for j in range(n) if s[j] > 0]
    one_way, task_way = len(set(higher)) == 1, len({higher[j] for j in tasks}) == 1
    diagonal = [r[i][j] for i in range(1, last + 1) for j in tasks if i == s[j]]
    below = [r[i][j] for i in range(1, last + 1) for j in tasks if i > s[j]]
    above = [r[i][j] for i in range(1, last + 1) for j in tasks if i < s[j]]
    return {
        "average": nanmean(r[last]) if one_way else NAN,
        "backward_transfer": nanmean(backward),
        "forward_transfer": nanmean(forward),
        "forgetting": nanmean(lost),
        "retention_percent": nanmean(left),
        "mtil_transfer": nanmean([nanmean([r[i][j] for i in range(1, s[j])]) for j in tasks]) if task_way else NAN,
        "mtil_average": nanmean([nanmean([r[i][j] for i in range(1, last + 1)]) for j in tasks]) if task_way else NAN,
        "mtil_last": nanmean([r[last][j] for j in tasks]) if task_way else NAN,
        "tic_in_domain": nanmean(diagonal) if task_way else NAN,
        "tic_backward": nanmean(below) if task_way else NAN,
        "tic_forward": nanmean(above) if task_way else NAN,
    }


@pytest.mark.parametrize("seed", range(100))
def test_equals_naive_loops_on_random_matrices(seed: int) -> None:
    generator = np.random.default_rng(seed)
    stages, n = int(generator.integers(1, 7)), int(generator.integers(1, 8))
    values = generator.uniform(0.05, 2, (stages + 1, n))
    values[generator.random(values.shape) < 0.2 * (seed % 3)] = NAN
    trained_at = generator.integers(0, stages + 1, n).tolist()
    mixture = [[True] * n, [False] * n, (generator.random(n) < 0.5).tolist()][seed % 4 % 3]
    result = summary(matrix(values, trained_at, mixture))
    assert result == pytest.approx(oracle(values.tolist(), trained_at, mixture), abs=1e-9, nan_ok=True)


def row(stage: str, index: int, column: str, value: float, **more: object) -> Row:
    return Row("run", stage, index, 0, column, "d", "test", "a->b", "R@1", value, **{"main": True, **more})


def test_matrix_from_rows() -> None:
    rows = [
        row("start", 0, "pictures", 0.1, emergent=True),
        row("start", 0, "language", 1.0, higher_is_better=False),
        row("one", 1, "pictures", 0.7),
        row("one", 1, "pictures", 0.3, main=False),
        row("one", 1, "language", NAN, higher_is_better=False),
        row("two", 2, "language", 1.2, higher_is_better=False),
    ]
    got = matrix_from_rows(rows)
    assert got.moments == ["start", "one", "two"]
    assert got.columns == ["pictures", "language"]
    np.testing.assert_array_equal(got.values, [[0.1, 1.0], [0.7, NAN], [NAN, 1.2]])
    assert got.higher_is_better == [True, False]
    assert got.trained_at == [1, 0]
    assert matrix_from_rows(rows, {"pictures": 2}).trained_at == [2, 0]


def test_refuses_two_main_scores_of_one_cell() -> None:
    with pytest.raises(ValueError, match="column 'x' has two main scores after stage 'one'"):
        matrix_from_rows([row("one", 1, "x", 0.1), row("one", 1, "x", 0.2)])
