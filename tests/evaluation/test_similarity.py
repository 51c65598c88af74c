"""Each measure against a naive version, and what it must not see."""

import math

import numpy as np
import pytest
import torch

from mmalign.evaluation.similarity import linear_cka, mean_cosine, neighbour_overlap, spearman_of_similarities


def vectors(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


MEASURES = [mean_cosine, neighbour_overlap, linear_cka, spearman_of_similarities]


@pytest.mark.parametrize("measure", MEASURES)
def test_an_unchanged_tower_is_one(measure) -> None:
    old = vectors(40, 8, 0)
    assert measure(old, old.clone()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES[1:])
def test_rotation_and_scale_are_not_drift_for_relative_measures(measure) -> None:
    old = vectors(40, 8, 0)
    rotation = torch.linalg.qr(vectors(8, 8, 1).double()).Q
    assert measure(old, 3 * old.double() @ rotation) == pytest.approx(1, abs=1e-9)
    assert mean_cosine(old, (old.double() @ rotation).float()) < 0.7


@pytest.mark.parametrize("measure", MEASURES)
def test_unrelated_embeddings_are_far_from_one(measure) -> None:
    assert abs(measure(vectors(300, 8, 0), vectors(300, 8, 9))) < 0.15


def test_neighbours_against_loops_and_chance() -> None:
    old, new = vectors(25, 4, 0), vectors(25, 4, 0) + 0.5 * vectors(25, 4, 1)

    def nearest(x: np.ndarray, i: int) -> set[int]:
        cosine = [x[i] @ y / np.linalg.norm(x[i]) / np.linalg.norm(y) if j != i else -9 for j, y in enumerate(x)]
        return set(np.argsort(cosine)[-10:].tolist())

    shares = [len(nearest(old.numpy(), i) & nearest(new.numpy(), i)) / 10 for i in range(25)]
    assert neighbour_overlap(old, new) == pytest.approx(np.mean(shares))
    assert neighbour_overlap(vectors(400, 16, 2), vectors(400, 16, 3)) == pytest.approx(10 / 399, abs=0.015)


def test_cka_equals_the_kernel_form() -> None:
    """HSIC with centred Gram matrices, n × n instead of width × width."""
    x, y = vectors(30, 6, 0).double().numpy(), vectors(30, 9, 1).double().numpy()
    h = np.eye(30) - 1 / 30
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert linear_cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(linear_cka(torch.ones(5, 2), torch.ones(5, 2)))


def test_spearman_with_ties_against_torchmetrics_and_loops() -> None:
    from torchmetrics.functional import spearman_corrcoef

    old = torch.randint(-1, 2, (30, 3), generator=torch.Generator().manual_seed(0)).float() + 0.5
    new = old + torch.randint(-1, 2, (30, 3), generator=torch.Generator().manual_seed(1))

    def similarities(x: torch.Tensor) -> list[float]:
        unit = torch.nn.functional.normalize(x.double(), dim=1)
        return [round(float(unit[i] @ unit[j]), 12) for i in range(30) for j in range(i + 1, 30)]

    a, b = similarities(old), similarities(new)

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values]

    expected = np.corrcoef(ranks(a), ranks(b))[0, 1]
    assert spearman_of_similarities(old, new) == pytest.approx(expected, abs=1e-9)
    x, y = vectors(40, 5, 0), vectors(40, 5, 0) + vectors(40, 5, 1)
    theirs = spearman_corrcoef(*(torch.tensor(similarities(v), dtype=torch.float64) for v in (x, y)))
    assert spearman_of_similarities(x, y) == pytest.approx(float(theirs), abs=1e-3)  # theirs adds an epsilon
