"""Means over queries: which count, and what stands beside them."""

import math

import pytest
import torch

from mmalign.evaluation.retrieval_metrics import Ranking, rank_queries
from mmalign.evaluation.retrieval_scores import METRICS, retrieval_scores


def test_by_hand() -> None:
    ranking = Ranking(
        best_rank=torch.tensor([1, 4, 0, 12, 7]),
        average_precision=torch.tensor([1.0, 0.25, math.nan, 0.0, 1 / 7]),
        n_relevant=torch.tensor([1, 1, 0, 1, 1]),
        query_group=torch.arange(5),
        n_gallery=20,
    )
    scores = retrieval_scores(ranking)
    assert [scores[f"R@{k}"].value for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert scores["mAP@10"].value == pytest.approx((1 + 0.25 + 1 / 7) / 4)
    assert scores["median_rank"].value == 5.5
    assert not scores["median_rank"].higher_is_better
    assert [scores[f"R@{k}"].chance for k in (1, 5, 10)] == pytest.approx([0.05, 0.25, 0.5])
    assert scores["median_rank"].chance == 10
    some = retrieval_scores(ranking, torch.tensor([True, True, True, False, False]))
    assert some["R@5"].value == 1.0


def test_random_embeddings_score_chance() -> None:
    """With ragged relevance, so that the chance level of every metric is tested as a mixture."""
    generator = torch.Generator().manual_seed(4)
    query_group, gallery_group = torch.arange(3000) % 100, torch.randint(0, 110, (700,), generator=generator)
    queries, gallery = torch.randn(3000, 64, generator=generator), torch.randn(700, 64, generator=generator)
    scores = retrieval_scores(rank_queries(queries, gallery, query_group, gallery_group))
    for name in METRICS:
        score = scores[name]
        assert score.ci_low <= score.value <= score.ci_high
        assert score.value == pytest.approx(score.chance, rel=0.2), name


def test_nothing_to_score_is_nan() -> None:
    ranking = rank_queries(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([7, 8]))
    for score in retrieval_scores(ranking).values():
        assert math.isnan(score.value)
        assert math.isnan(score.chance)
