"""Ranks and average precision against a naive full matrix, against torchmetrics, and their properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmalign.evaluation.retrieval_metrics import TIE_TOLERANCE, rank_queries

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def naive(
    queries: Tensor, gallery: Tensor, query_group: Tensor, gallery_group: Tensor
) -> tuple[list[int], list[float]]:
    """Sort the whole gallery for one query after the other, irrelevant items first among equals; in float64."""
    queries = torch.nn.functional.normalize(queries.double(), dim=1)
    gallery = torch.nn.functional.normalize(gallery.double(), dim=1)
    ranks, precisions = [], []
    for query, group in zip(queries, query_group.tolist(), strict=True):
        relevant = [g == group for g in gallery_group.tolist()]
        scores = (gallery @ query).tolist()
        order = sorted(range(len(scores)), key=lambda i: -scores[i] + TIE_TOLERANCE * relevant[i])
        places = [place for place, i in enumerate(order, 1) if relevant[i]]
        ranks.append(places[0] if places else 0)
        hits = [found / place for found, place in enumerate(places, 1) if place <= 10]
        precisions.append(sum(hits) / min(10, len(places)) if places else float("nan"))
    return ranks, precisions


@st.composite
def collections(draw: st.DrawFn) -> Data:
    """From a coarse grid: many exact ties and duplicates; ragged groups, some queries without relevant items."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n_queries, n_gallery, groups = draw(st.integers(1, 300)), draw(st.integers(1, 700)), draw(st.integers(1, 60))
    dim, levels = draw(st.integers(1, 6)), draw(st.integers(1, 4))

    def vectors(n: int) -> Tensor:
        return torch.randint(-levels, levels + 1, (n, dim), generator=generator).float()

    def group(n: int) -> Tensor:
        return torch.randint(0, groups, (n,), generator=generator) * 7 - 3

    return vectors(n_queries), vectors(n_gallery), group(n_queries), group(n_gallery)


@settings(deadline=None, max_examples=40)
@given(collections(), st.sampled_from([128, 256, 2048]))
def test_equals_naive_with_ties_duplicates_and_ragged_groups(data: Data, tile: int) -> None:
    ranking = rank_queries(*data, tile=tile)
    ranks, precisions = naive(*data)
    assert ranking.best_rank.tolist() == ranks
    torch.testing.assert_close(ranking.average_precision, torch.tensor(precisions), atol=1e-6, rtol=0, equal_nan=True)
    assert not (ranking.average_precision > 1).any()


@settings(deadline=None, max_examples=25)
@given(collections(), st.integers(0, 2**31))
def test_order_of_queries_and_gallery_does_not_matter(data: Data, seed: int) -> None:
    queries, gallery, query_group, gallery_group = data
    generator = torch.Generator().manual_seed(seed)
    p = torch.randperm(len(queries), generator=generator)
    q = torch.randperm(len(gallery), generator=generator)
    plain = rank_queries(queries, gallery, query_group, gallery_group, tile=128)
    shuffled = rank_queries(queries[p], gallery[q], query_group[p], gallery_group[q], tile=128)
    assert torch.equal(plain.best_rank[p], shuffled.best_rank)
    torch.testing.assert_close(plain.average_precision[p], shuffled.average_precision, equal_nan=True)


@pytest.mark.parametrize("signal", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("per_query", [1, 3, 25])
def test_equals_naive_and_torchmetrics_on_generic_embeddings(signal: float, per_query: int) -> None:
    from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

    generator = torch.Generator().manual_seed(1)
    query_group = torch.arange(60)
    gallery_group = torch.arange(60).repeat_interleave(per_query)
    queries = torch.randn(60, 64, generator=generator)
    gallery = torch.randn(60 * per_query, 64, generator=generator) + signal * queries[gallery_group]
    ranking = rank_queries(queries, gallery, query_group, gallery_group, tile=128)
    ranks, precisions = naive(queries, gallery, query_group, gallery_group)
    assert ranking.best_rank.tolist() == ranks
    torch.testing.assert_close(ranking.average_precision, torch.tensor(precisions))
    scores = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(gallery, dim=1).T
    for i in range(60):
        target = gallery_group == i
        for k in (1, 5, 10):
            assert bool(retrieval_hit_rate(scores[i], target, top_k=k)) == (0 < ranks[i] <= k)
        # torchmetrics divides by the number of hits among the first ten, ours by min(10, relevant items)
        top = scores[i].topk(10).indices
        hits = int(target[top].sum())
        theirs = float(retrieval_average_precision(scores[i], target, top_k=10)) * hits / min(10, per_query)
        assert ranking.average_precision[i] == pytest.approx(theirs, abs=1e-6)


def test_collapsed_model_scores_nothing_whatever_the_rounding() -> None:
    """All embeddings equal up to float noise, at sizes where tile edges round differently."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, 515, generator=generator)
    groups = torch.arange(1300)
    ranking = rank_queries(one.repeat(1300, 1) * 3.7, one.repeat(1300, 1), groups, groups, tile=256)
    assert ranking.best_rank.tolist() == [1300] * 1300
    assert ranking.average_precision.tolist() == [0.0] * 1300


def test_identical_gallery_items_of_other_groups_count_before_the_relevant_one() -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(700, 515, generator=generator)
    copies = torch.cat([gallery, gallery, gallery])
    ranking = rank_queries(gallery, copies, torch.arange(700), torch.arange(2100), tile=512)
    assert ranking.best_rank.tolist() == [3] * 700


@pytest.mark.parametrize("tile", [128, 384, 1024])
def test_tile_does_not_change_the_result(tile: int) -> None:
    generator = torch.Generator().manual_seed(3)
    query_group, gallery_group = torch.arange(500) % 90, torch.randint(0, 100, (1500,), generator=generator)
    queries, gallery = torch.randn(500, 33, generator=generator), torch.randn(1500, 33, generator=generator)
    whole = rank_queries(queries, gallery, query_group, gallery_group, tile=2048)
    tiled = rank_queries(queries, gallery, query_group, gallery_group, tile=tile)
    assert torch.equal(whole.best_rank, tiled.best_rank)
    torch.testing.assert_close(whole.average_precision, tiled.average_precision, rtol=1e-6, atol=0)


def test_average_precision_by_hand() -> None:
    """Relevant items at places 1, 3 and 12 of 12: (1/1 + 2/3) / 3."""
    angles = torch.linspace(0, 1, 12)
    gallery = torch.stack([angles.cos(), angles.sin()], 1)
    group = torch.tensor([5, 0, 5, 1, 1, 1, 1, 1, 1, 1, 1, 5])
    ranking = rank_queries(torch.tensor([[2.0, 0.0]]), gallery, torch.tensor([5]), group)
    assert ranking.best_rank.item() == 1
    assert ranking.average_precision.item() == pytest.approx((1 + 2 / 3) / 3)
    assert ranking.n_relevant.item() == 3


def test_refuses_embeddings_that_are_not_finite() -> None:
    bad = torch.tensor([[1.0, 2.0], [float("nan"), 0.0]])
    with pytest.raises(ValueError, match="gallery: 1 of 2 embeddings are not finite"):
        rank_queries(torch.ones(1, 2), bad, torch.tensor([0]), torch.tensor([0, 1]))


def test_empty_gallery_and_no_queries() -> None:
    none, group = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert rank_queries(torch.ones(2, 4), none, torch.tensor([0, 1]), group).best_rank.tolist() == [0, 0]
    assert rank_queries(none, torch.ones(2, 4), group, torch.tensor([0, 1])).best_rank.tolist() == []
