"""Closed forms against simulation and against small cases counted out."""

import itertools
import math

import pytest
import torch

from mmalign.evaluation import chance


@pytest.mark.parametrize(("n", "size"), [(1, 6), (2, 6), (3, 7), (7, 7)])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_equals_the_mean_over_all_orders(n: int, size: int, k: int) -> None:
    recalls, precisions = [], []
    for places in itertools.combinations(range(1, size + 1), n):
        recalls.append(float(places[0] <= k))
        precisions.append(sum(j / p for j, p in enumerate(places, 1) if p <= k) / min(k, n))
    count = torch.tensor([n])
    assert chance.recall_at_k(count, size, k).item() == pytest.approx(sum(recalls) / len(recalls))
    assert chance.average_precision_at_k(count, size, k).item() == pytest.approx(sum(precisions) / len(precisions))


def test_median_of_a_mixture_equals_simulation() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([1, 1, 5, 40, 0])
    ranks = []
    for n in counts[:4].tolist():
        order = torch.rand(4000, 500, generator=generator).argsort(1)
        ranks.append((order[:, :n]).amin(1) + 1)
    simulated = float(torch.cat(ranks).double().median())
    assert chance.median_best_rank(counts, 500) == pytest.approx(simulated, rel=0.06)
    assert chance.median_best_rank(torch.tensor([1]), 9) == 5
    assert math.isnan(chance.median_best_rank(torch.tensor([0]), 9))


def test_large_gallery_keeps_its_digits() -> None:
    assert chance.recall_at_k(torch.tensor([1]), 1_000_000, 1).item() == pytest.approx(1e-6, rel=1e-6)
    assert chance.recall_at_k(torch.tensor([1]), 1_000_000, 10).item() == pytest.approx(1e-5, rel=1e-6)
