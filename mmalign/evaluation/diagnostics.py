"""The geometry of a shared space: where the modalities lie, how they spread, how many directions they use."""

from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def modality_gap(one: Float[Tensor, "items dim"], other: Float[Tensor, "others dim"]) -> float:
    """Distance between the means of two modalities' unit vectors (Liang et al., "Mind the Gap", 2022); 0 to 2."""
    return float((F.normalize(one.double(), dim=1).mean(0) - F.normalize(other.double(), dim=1).mean(0)).norm())


def alignment(one: Float[Tensor, "items dim"], other: Float[Tensor, "items dim"], power: float = 2.0) -> float:
    """Mean distance^power between the unit vectors of positive pairs, row by row; 0 is best (Wang and Isola,
    "Understanding Contrastive Representation Learning through Alignment and Uniformity", 2020)."""
    difference = F.normalize(one.double(), dim=1) - F.normalize(other.double(), dim=1)
    return float(difference.norm(dim=1).pow(power).mean())


def uniformity(vectors: Float[Tensor, "items dim"], t: float = 2.0) -> float:
    """log of the mean of exp(-t distance^2) over all pairs of different items (Wang and Isola 2020).

    0 for a collapsed set, more negative the more evenly the unit vectors fill the sphere; NaN for fewer than two.
    """
    unit = F.normalize(vectors.double(), dim=1)
    if len(unit) < 2:
        return float("nan")
    return float(torch.pdist(unit).square().mul(-t).exp().mean().log())


def effective_rank(vectors: Float[Tensor, "items dim"]) -> float:
    """exp of the entropy of the singular values' shares, after centring: from 1 to min(items - 1, dim) (Roy and
    Vetterli, "The Effective Rank", 2007). NaN for a constant set."""
    values = torch.linalg.svdvals(vectors.double() - vectors.double().mean(0))
    share = values / values.sum()
    share = share[share > 0]
    return float((-(share * share.log()).sum()).exp()) if len(share) else float("nan")


def principal_plane(
    vectors: dict[str, Float[Tensor, "_ dim"]],
) -> tuple[dict[str, Float[Tensor, "_ 2"]], list[float]]:
    """Coordinates of all modalities' unit vectors in the plane of their first two joint principal components.

    Returns the points by modality and the share of the variance that each axis explains. The axes' signs are fixed by
    their largest entry, so that two stages can be compared.
    """
    unit = {name: F.normalize(rows.double(), dim=1) for name, rows in vectors.items()}
    everything = torch.cat(list(unit.values()))
    mean = everything.mean(0)
    _, values, directions = torch.linalg.svd(everything - mean, full_matrices=False)
    axes = F.pad(directions[:2], (0, 0, 0, max(0, 2 - len(directions))))
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    shares = values.square() / values.square().sum().clamp_min(1e-300)
    return {name: ((rows - mean) @ axes.T).float() for name, rows in unit.items()}, shares[:2].tolist()


def modality_gap_plot(vectors: dict[str, Float[Tensor, "_ dim"]], most_points: int = 500) -> dict[str, Any]:
    """What a report needs to draw the gap: the first so many points of each modality in their plane, and distances.

    Plain values: {"points": {modality: [[x, y], …]}, "explained_variance": [first, second], "gaps": {"a-b": distance}}.
    """
    if not vectors:
        return {"points": {}, "explained_variance": [], "gaps": {}}
    points, shares = principal_plane({name: rows[:most_points] for name, rows in vectors.items()})
    return {
        "points": {name: rows.tolist() for name, rows in points.items()},
        "explained_variance": shares,
        "gaps": {f"{a}-{b}": modality_gap(vectors[a], vectors[b]) for a, b in combinations(sorted(vectors), 2)},
    }
