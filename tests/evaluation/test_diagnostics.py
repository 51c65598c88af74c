"""Geometry of sets whose answer is known."""

import math

import pytest
import torch

from mmalign.evaluation.diagnostics import (
    alignment,
    effective_rank,
    modality_gap,
    modality_gap_plot,
    principal_plane,
    uniformity,
)


def noise(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_gap_by_hand() -> None:
    one, other = torch.tensor([[2.0, 0.0], [5.0, 0.0]]), torch.tensor([[0.0, 0.1]])
    assert modality_gap(one, other) == pytest.approx(math.sqrt(2))
    assert modality_gap(noise(4000, 3, 0), noise(4000, 3, 1)) < 0.05


def test_alignment_and_uniformity_by_loops() -> None:
    x, y = noise(12, 3, 0), noise(12, 3, 1)
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
    assert alignment(x, y) == pytest.approx(sum(float((a[i] - b[i]).norm() ** 2) for i in range(12)) / 12, abs=1e-6)
    pairs = [math.exp(-2 * float((a[i] - a[j]).norm() ** 2)) for i in range(12) for j in range(i)]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-6)
    assert uniformity(torch.ones(5, 4)) == pytest.approx(0)


def test_effective_rank_counts_equal_directions() -> None:
    directions = torch.linalg.qr(noise(16, 16).double()).Q
    spread = torch.cat([directions[:5], -directions[:5]])
    assert effective_rank(spread) == pytest.approx(5)
    assert effective_rank(noise(2000, 16)) > 15.9
    assert math.isnan(effective_rank(torch.ones(4, 4)))


def test_plane_separates_what_is_apart_and_keeps_distances_in_it() -> None:
    base = torch.zeros(60, 10)
    base[:, 0] = torch.tensor([1.0, -1.0, 0.2]).repeat(20)
    base[:, 1] = torch.tensor([0.3, 0.5, 1.0]).repeat(20)
    vectors = {"image": base[:30], "text": base[30:] * 7}
    points, shares = principal_plane(vectors)
    assert sum(shares) == pytest.approx(1)
    unit = torch.nn.functional.normalize(base, dim=1)
    flat = torch.cat([points["image"], points["text"]])
    torch.testing.assert_close(torch.cdist(flat, flat), torch.cdist(unit, unit), atol=1e-5, rtol=1e-5)


def test_plot_is_plain_and_bounded() -> None:
    plot = modality_gap_plot({"image": noise(40, 6, 0), "audio": noise(9, 6, 1) + 3}, most_points=20)
    assert {name: len(rows) for name, rows in plot["points"].items()} == {"image": 20, "audio": 9}
    assert plot["gaps"]["audio-image"] > 0.5
    assert modality_gap_plot({}) == {"points": {}, "explained_variance": [], "gaps": {}}
