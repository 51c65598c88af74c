"""The control of a frozen tower's alignment: a linear map between the towers' outputs, without any training of ours."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.data.config import ShardData
from mmalign.data.order import keyed_hash
from mmalign.evaluation.base import Evaluator, Moment
from mmalign.evaluation.embed import Embedded, bound_modalities, embed_modality
from mmalign.evaluation.retrieval_metrics import rank_queries
from mmalign.evaluation.retrieval_scores import METRICS, retrieval_scores
from mmalign.evaluation.score import RowMaker, Score
from mmalign.evaluation.table import Row

if TYPE_CHECKING:
    from mmalign.model import Aligner

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class LinearMap(Evaluator):
    """Retrieval after ridge regression from one tower's pooled outputs to another's, fitted on the training pairs.

    Each item of the source is one equation, whose target is the mean of its sample's target vectors at unit length.
    Both sides are centred by their training means, and both directions are ranked by the cosine between mapped source
    and target. The penalty is chosen by cross-validation within the training pairs, in which a group is never divided:
    the largest mean of mAP@10 over both directions wins. Rows are as those of `Retrieval`; R@1 of source->target is the
    main one.

    Args:
        data: what is tested on.
        train: what the map is fitted on; all together.
        source, target: modalities; the map goes from the first to the second.
        ridges: penalties to choose from, in units of the mean variance of a source channel.
        folds: of the cross-validation.
        dataset: name in the rows; None means that of the shard directory.
        batch_size: rows that a tower sees at a time.
    """

    def __init__(
        self,
        data: ShardData,
        train: list[ShardData],
        source: str = "image",
        target: str = "text",
        ridges: list[float] | None = None,
        folds: int = 5,
        dataset: str | None = None,
        batch_size: int = 64,
    ) -> None:
        self.ridges = list(RIDGES) if ridges is None else ridges
        if not train or not self.ridges or min(self.ridges) <= 0 or folds < 2:
            raise ValueError("LinearMap: train and ridges must not be empty, ridges above 0, folds at least 2")
        self.data = data
        self.train = train
        self.source = source
        self.target = target
        self.folds = folds
        self.dataset = dataset or Path(data.shards).name
        self.batch_size = batch_size
        self.chosen_ridge: float | None = None
        """The penalty of the last evaluation."""

    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]:
        maker = RowMaker(moment, column, self.dataset, self.data.split)
        directions = (f"{self.source}->{self.target}", f"{self.target}->{self.source}")
        everywhere = [self.data, *self.train]
        if not all({self.source, self.target} <= set(bound_modalities(model, data)) for data in everywhere):
            for direction in directions:
                for metric in METRICS:
                    score = Score(higher_is_better=metric != "median_rank")
                    yield maker.row(direction, metric, score, direction == directions[0] and metric == "R@1")
            return
        queries, gallery = self._embed(model, self.data, self.source), self._embed(model, self.data, self.target)
        fitted = self._fit(model)
        sides = (fitted.map(pooled_of(queries)), fitted.centred(pooled_of(gallery)))
        missing = queries.samples - len(queries.present & gallery.present)
        for direction, (some, others), (of_some, of_others) in zip(
            directions, (sides, sides[::-1]), ((queries, gallery), (gallery, queries)), strict=True
        ):
            ranking = rank_queries(some, others, of_some.group, of_others.group)
            used = int((ranking.n_relevant > 0).sum())
            for metric, score in retrieval_scores(ranking).items():
                main = direction == directions[0] and metric == "R@1"
                yield maker.row(direction, metric, score, main, False, used, ranking.n_gallery, missing)

    def _embed(self, model: "Aligner", data: ShardData, modality: str) -> Embedded:
        return embed_modality(model, data, modality, self.batch_size, pooled=True)

    def _fit(self, model: "Aligner") -> "Ridge":
        pairs = [
            paired(*(self._embed(model, data, side) for side in (self.source, self.target))) for data in self.train
        ]
        sources, targets, groups = (torch.cat([pair[i] for pair in pairs]) for i in range(3))
        self.chosen_ridge = choose_ridge(sources, targets, groups, self.ridges, self.folds)
        return Spectrum.of(sources, targets).solve(self.chosen_ridge)


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


def pooled_of(embedded: Embedded) -> Tensor:
    assert embedded.pooled is not None
    return embedded.pooled


def paired(source: Embedded, target: Embedded) -> tuple[Tensor, Tensor, Tensor]:
    """Every source row whose sample has a target, the mean of that sample's unit target vectors, and the group."""
    of_sample = torch.tensor([info.sample for info in target.infos], dtype=torch.int64)
    size = max(source.samples, target.samples)
    vectors = unit(pooled_of(target))
    total = vectors.new_zeros(size, vectors.shape[1]).index_add(0, of_sample, vectors)
    count = torch.zeros(size, dtype=torch.int64).index_add(0, of_sample, torch.ones_like(of_sample))
    asked = torch.tensor([info.sample for info in source.infos], dtype=torch.int64)
    kept = count[asked] > 0
    rows = asked[kept]
    return pooled_of(source)[kept], (total[rows] / count[rows].unsqueeze(1)).float(), source.group[kept]


def choose_ridge(
    sources: Float[Tensor, "rows width"],
    targets: Float[Tensor, "rows target_width"],
    groups: Int[Tensor, " rows"],
    ridges: list[float],
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
