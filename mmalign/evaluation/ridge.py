"""Ridge regression between the outputs of two towers, with its penalty chosen by cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.data.order import keyed_hash
from mmalign.evaluation.retrieval_metrics import rank_queries

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Ridge:
    """target - mean ≈ (source - mean) @ weights."""

    source_mean: Float[Tensor, " width"]
    target_mean: Float[Tensor, " target_width"]
    weights: Float[Tensor, "width target_width"]

    def map(self, sources: Float[Tensor, "rows width"]) -> Float[Tensor, "rows target_width"]:
        """The mapped, centred source."""
        return ((sources.double() - self.source_mean) @ self.weights).float()

    def centred(self, targets: Float[Tensor, "rows target_width"]) -> Float[Tensor, "rows target_width"]:
        """Targets at unit length, centred."""
        return (unit(targets) - self.target_mean).float()


@dataclass(frozen=True)
class Spectrum:
    """The eigenvectors of the source's covariance: solves the regression for any penalty at little cost."""

    source_mean: Float[Tensor, " width"]
    target_mean: Float[Tensor, " target_width"]
    values: Float[Tensor, " width"]
    vectors: Float[Tensor, "width width"]
    products: Float[Tensor, "width target_width"]

    @classmethod
    def of(cls, sources: Float[Tensor, "rows width"], targets: Float[Tensor, "rows target_width"]) -> "Spectrum":
        sources, targets = sources.double(), unit(targets)
        source_mean, target_mean = sources.mean(0), targets.mean(0)
        centred = sources - source_mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        products = vectors.T @ (centred.T @ (targets - target_mean) / len(centred))
        return cls(source_mean, target_mean, values.clamp_min(0), vectors, products)

    def solve(self, ridge: float) -> Ridge:
        """The minimum of mean squared error + ridge · (mean variance of a source channel) · |weights|²."""
        shrunk = self.values + ridge * self.values.mean().clamp_min(1e-12)
        return Ridge(self.source_mean, self.target_mean, self.vectors @ (self.products / shrunk.unsqueeze(1)))


def unit(vectors: Tensor) -> Tensor:
    """Double precision: the smallest penalties leave ill-conditioned equations."""
    return torch.nn.functional.normalize(vectors.double(), dim=1)


def choose_ridge(
    sources: Float[Tensor, "rows width"],
    targets: Float[Tensor, "rows target_width"],
    groups: Int[Tensor, " rows"],
    ridges: Sequence[float],
    folds: int,
) -> float:
    """The penalty with the best mean mAP@10 of both directions over the held-out folds; groups stay in one fold."""
    fold = torch.tensor([keyed_hash("fold", int(group)) % folds for group in groups])
    scores = torch.zeros(len(ridges), dtype=torch.float64)
    for held_out in range(folds):
        inside, outside = fold != held_out, fold == held_out
        if not inside.any() or not outside.any():
            continue
        spectrum = Spectrum.of(sources[inside], targets[inside])
        for i, ridge in enumerate(ridges):
            fitted = spectrum.solve(ridge)
            sides = fitted.map(sources[outside]), fitted.centred(targets[outside])
            for some, others in (sides, sides[::-1]):
                ranking = rank_queries(some, others, groups[outside], groups[outside])
                scores[i] += ranking.average_precision.double().mean()
    return ridges[int(scores.argmax())]
