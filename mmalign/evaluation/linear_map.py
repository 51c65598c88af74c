"""The control of a frozen tower's alignment: a linear map between the towers' outputs, without any training of ours."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmalign.checks import at_least
from mmalign.data.config import ShardData
from mmalign.evaluation.base import Evaluator, Moment, require
from mmalign.evaluation.embed import Embedded, bound_modalities, embed_modality
from mmalign.evaluation.retrieval_metrics import rank_queries
from mmalign.evaluation.retrieval_scores import METRICS, retrieval_scores
from mmalign.evaluation.ridge import RIDGES, Ridge, Spectrum, choose_ridge, unit
from mmalign.evaluation.score import RowMaker, Score
from mmalign.evaluation.table import Row

if TYPE_CHECKING:
    from mmalign.model import Aligner


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
        at_least(1, batch_size=batch_size)
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

    def check(self, model: "Aligner") -> None:
        for data in (self.data, *self.train):
            for key, name in (("source", self.source), ("target", self.target)):
                require(f"{key} ({data.shards})", name, bound_modalities(model, data))

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
        fitted, self.chosen_ridge = fit_ridge(
            model, self.train, self.source, self.target, self.ridges, self.folds, self.batch_size
        )
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


def fit_ridge(
    model: "Aligner",
    train: list[ShardData],
    source: str,
    target: str,
    ridges: Sequence[float] = RIDGES,
    folds: int = 5,
    batch_size: int = 64,
) -> tuple[Ridge, float]:
    """The map as `LinearMap` describes it, and its penalty."""
    pairs = [
        paired(*(embed_modality(model, data, side, batch_size, pooled=True) for side in (source, target)))
        for data in train
    ]
    sources, targets, groups = (torch.cat([pair[i] for pair in pairs]) for i in range(3))
    chosen = choose_ridge(sources, targets, groups, ridges, folds)
    return Spectrum.of(sources, targets).solve(chosen), chosen


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
