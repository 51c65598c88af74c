"""Intervals against a naive loop, against theory, and their clustering."""

import math

import numpy as np
import pytest
import torch

from mmalign.evaluation.bootstrap import mean_intervals, median_interval, ratio_intervals


def naive_draws(cluster: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    """The same draws as index arrays: all members of every drawn cluster, as often as it is drawn."""
    ids = np.unique(cluster)
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(ids), (draws, len(ids)), generator=generator).numpy()
    return [np.concatenate([np.flatnonzero(cluster == ids[i]) for i in row]) for row in picked]


def test_equals_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(1, 30, (41, 2), generator=generator).double()
    cluster = torch.randint(0, 9, (41,), generator=generator) * 3
    draws = naive_draws(cluster.numpy(), 200, 5)
    means = np.array([values.numpy()[i].mean(0) for i in draws])
    medians = np.array([np.median(values.numpy()[i, 0]) for i in draws])
    got = mean_intervals(values, cluster, draws=200, seed=5)
    np.testing.assert_allclose(got.numpy(), np.quantile(means, [0.025, 0.975], axis=0).T)
    got = ratio_intervals(values[:, :1], values[:, 1:], cluster, draws=200, seed=5)[0]
    ratios = [values.numpy()[i, 0].sum() / values.numpy()[i, 1].sum() for i in draws]
    np.testing.assert_allclose(got.numpy(), np.quantile(ratios, [0.025, 0.975]))
    got = median_interval(values[:, 0], cluster, draws=200, seed=5)
    np.testing.assert_allclose(got.numpy(), np.quantile(medians, [0.025, 0.975]))


def test_width_is_that_of_theory_and_grows_with_clusters() -> None:
    generator = torch.Generator().manual_seed(1)
    hits = (torch.rand(400, generator=generator) < 0.3).double()
    low, high = mean_intervals(hits.unsqueeze(1), torch.arange(400))[0].tolist()
    p = float(hits.mean())
    assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 400), rel=0.1)
    # five identical copies of each query are no new evidence
    copies = hits.repeat_interleave(5)
    clustered = mean_intervals(copies.unsqueeze(1), torch.arange(400).repeat_interleave(5))[0]
    naive = mean_intervals(copies.unsqueeze(1), torch.arange(2000))[0]
    assert float(clustered[1] - clustered[0]) == pytest.approx(high - low, rel=1e-9)
    assert float(naive[1] - naive[0]) < 0.6 * (high - low)


def test_is_the_same_every_time_and_nan_for_one_cluster() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(median_interval(values, torch.arange(50)), median_interval(values, torch.arange(50)))
    assert mean_intervals(values.unsqueeze(1), torch.zeros(50, dtype=torch.int64)).isnan().all()
