"""Our transfers and forgetting against Avalanche's.

Avalanche's pins clash with ours, so that this runs in an environment of its own:

    python -m venv .venv-avalanche
    .venv-avalanche/bin/pip install -e '.[dev]' avalanche-lib
    .venv-avalanche/bin/pytest tests/evaluation/test_forgetting_avalanche.py

Avalanche's forgetting is the score when a task was learned minus the last one, which is Chaudhry's where no later
moment was better than that; the matrices for it are made so.
"""

from typing import Any

import numpy as np
import pytest

from mmalign.evaluation.forgetting import (
    Matrix,
    backward_transfer,
    backward_transfer_by_column,
    forgetting_by_column,
    forward_transfer,
    forward_transfer_by_column,
)


def matrix(values: np.ndarray, higher: bool) -> Matrix:
    n = values.shape[1]
    moments = ["start", *(f"stage {t}" for t in range(1, n + 1))]
    return Matrix(moments, [f"task {j}" for j in range(n)], values, [higher] * n, list(range(1, n + 1)), ["x"] * n)


def test_agrees_with_avalanche_on_100_random_matrices() -> None:
    reason = "avalanche-lib is not installed; see this file's head"
    metrics = pytest.importorskip("avalanche.evaluation.metrics.forgetting_bwt", reason=reason)
    forward_metrics = pytest.importorskip("avalanche.evaluation.metrics.forward_transfer", reason=reason)
    for seed in range(100):
        compare(seed, metrics, forward_metrics)


def compare(seed: int, metrics: Any, forward_metrics: Any) -> None:
    generator = np.random.default_rng(seed)
    n, higher = int(generator.integers(2, 7)), bool(seed % 2)
    values = generator.uniform(0, 1, (n + 1, n))
    for j in range(n):
        values[j + 1, j] += 1  # the best moment of a task is when it was learned
    bwt, forgetting, forward = metrics.BWT(), metrics.Forgetting(), forward_metrics.ForwardTransfer()
    for j in range(n):
        for metric in (bwt, forgetting):
            metric.update(j, values[j + 1, j], initial=True)
            if j + 1 < n:
                metric.update(j, values[n, j])
        forward.update(j, values[0, j], initial=True)
        if j > 0:
            forward.update(j, values[j, j])
    # the same run measured in something that should fall
    ours = matrix(values if higher else -values, higher)
    found = {
        "backward": (backward_transfer_by_column(ours), bwt.result()),
        "forgetting": (forgetting_by_column(ours), forgetting.result()),
        "forward": (forward_transfer_by_column(ours), forward.result()),
    }
    for name, (mine, theirs) in found.items():
        assert {j: float(v) for j, v in enumerate(mine) if not np.isnan(v)} == pytest.approx(theirs, abs=1e-9), name
    assert backward_transfer(ours) == pytest.approx(np.mean(list(bwt.result().values())), abs=1e-9)
    assert forward_transfer(ours) == pytest.approx(np.mean(list(forward.result().values())), abs=1e-9)
