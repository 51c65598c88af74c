"""Ranks of retrieval, exact and in tiles: memory is linear in queries and gallery, time that of the matrix product.

A gallery item is relevant for a query when both belong to the same group; a query may have any number of relevant
items. Scores are cosines of float32 vectors.

The tie rule is pessimistic: an irrelevant item whose score reaches that of a relevant one counts as standing before
it. A collapsed model, whose scores are all equal, therefore scores 0 and not 1, and no result depends on the order of
queries, gallery or captions. Scores count as equal within `TIE_TOLERANCE`, because float32 cannot tell closer ones
apart: a matrix product rounds differently in the middle and at the edge of a tile, so that even identical vectors get
scores 1e-7 apart.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

TIE_TOLERANCE = 1e-6
CUTOFF = 10
"""Average precision looks at this many places."""

_GROUPED = 16
"""Scores of a row that are looked at together, through their maximum."""

_STRIP = 128
"""Queries at a time where only the relevant items of a few groups matter."""

_Strip = tuple[slice, int, int]
"""Rows, and the columns first … stop-1 among which all their relevant items are."""


@dataclass(frozen=True)
class Ranking:
    """What retrieval metrics are computed from, per query.

    Attributes:
        best_rank: place of the best relevant item, from 1; 0 for a query without any.
        average_precision: AP@10 = sum over places i <= 10 of P(i) rel(i), divided by min(10, relevant items): never
            above 1. NaN for a query without any relevant item.
        n_relevant: relevant items in the gallery.
        query_group: the queries' groups.
        n_gallery: gallery items.
    """

    best_rank: Int[Tensor, " queries"]
    average_precision: Float[Tensor, " queries"]
    n_relevant: Int[Tensor, " queries"]
    query_group: Int[Tensor, " queries"]
    n_gallery: int


def rank_queries(
    queries: Float[Tensor, "queries dim"],
    gallery: Float[Tensor, "gallery dim"],
    query_group: Int[Tensor, " queries"],
    gallery_group: Int[Tensor, " gallery"],
    tile: int = 2048,
) -> Ranking:
    """Rank the gallery for every query.

    Vectors are normalised here. `tile` (a multiple of 128) bounds the part of the score matrix that exists at a time to
    tile × tile; it does not change the result.

    Raises:
        ValueError: a vector is not finite, or `tile` is no multiple of 128.
    """
    if tile % 128:
        raise ValueError(f"tile must be a multiple of 128, not {tile}")
    query_order, gallery_order = query_group.argsort(stable=True), gallery_group.argsort(stable=True)
    sorted_groups, columns_group = query_group[query_order], gallery_group[gallery_order]
    # With both sides sorted by group, the relevant items of neighbouring queries are neighbouring columns.
    first = torch.searchsorted(columns_group, sorted_groups)
    stop = torch.searchsorted(columns_group, sorted_groups, right=True)
    rows, columns = _normalised(queries, query_order, "queries"), _normalised(gallery, gallery_order, "gallery")
    best, precision = torch.zeros_like(first), torch.full_like(first, torch.nan, dtype=torch.float32)
    for start in range(0, len(rows), tile):
        part = slice(start, start + tile)
        best[part], precision[part] = _rank_block(rows[part], columns, first[part], stop[part], tile)
    ranking = [torch.empty_like(x).index_copy_(0, query_order, x) for x in (best, precision, stop - first)]
    return Ranking(ranking[0], ranking[1], ranking[2], query_group, len(gallery))


def _normalised(vectors: Tensor, order: Tensor, name: str) -> Tensor:
    copy = vectors.index_select(0, order).float()
    norm = copy.norm(dim=1, keepdim=True)
    if not norm.isfinite().all():
        raise ValueError(f"{name}: {int((~norm.isfinite()).sum())} of {len(copy)} embeddings are not finite")
    return copy.div_(norm.clamp_min_(1e-12))


def _rank_block(
    rows: Float[Tensor, "block dim"],
    columns: Float[Tensor, "gallery dim"],
    first: Int[Tensor, " block"],
    stop: Int[Tensor, " block"],
    tile: int,
) -> tuple[Int[Tensor, " block"], Float[Tensor, " block"]]:
    """Best rank and AP@10 of a block of queries whose relevant items are columns first … stop-1."""
    strips = [
        (slice(top, top + _STRIP), int(first[top : top + _STRIP].min()), int(stop[top : top + _STRIP].max()))
        for top in range(0, len(rows), _STRIP)
    ]
    relevant = _relevant_scores(rows, columns, first, stop, strips, tile)
    bar = relevant - TIE_TOLERANCE
    n_relevant = stop - first
    before = torch.zeros_like(first)
    top = rows.new_full((len(rows), CUTOFF), -torch.inf)
    # One relevant item: its rank says all. Several: their ranks among the first ten follow from the ten best others,
    # which matter only while the best of the several may still be among the first ten.
    several = n_relevant > 1
    lowest = bar.gather(1, n_relevant.clamp(1, CUTOFF).unsqueeze(1) - 1).squeeze(1)
    width = min(tile, max(1, -(-len(columns) // 128)) * 128)
    scores = rows.new_empty(len(rows), width)
    compared = torch.empty(len(rows), width, dtype=torch.bool, device=rows.device)
    crowded = False  # in most rows of the last tile a score reached the bar: then it pays to compare all at once
    for left in range(0, len(columns), width):
        right = min(left + width, len(columns))
        torch.mm(rows, columns[left:right].T, out=scores[:, : right - left])
        scores[:, right - left :] = -torch.inf
        _hide_relevant(scores[:, : right - left], first - left, stop - left, left, strips)
        maxima = None if crowded else _maxima(scores)
        reached = _reached(scores, maxima, bar[:, 0], compared)
        before += reached
        crowded = 2 * int(reached.count_nonzero()) > len(rows)
        if bool((open_rows := several & (before < CUTOFF)).any()):
            _merge_top(scores, _maxima(scores) if maxima is None else maxima, top, open_rows, lowest)
    missing = n_relevant == 0
    places = torch.arange(1, CUTOFF + 1, device=rows.device)
    others = (top.unsqueeze(1) >= bar.unsqueeze(2)).sum(2)
    rank = places + torch.maximum(others, before.unsqueeze(1))  # what stands before the best stands before the rest
    hit = (rank <= CUTOFF) & relevant.isfinite()
    precision = (hit * places / rank).sum(1) / n_relevant.clamp(1, CUTOFF)
    return (before + 1).masked_fill(missing, 0), precision.masked_fill(missing, torch.nan)


def _relevant_scores(
    rows: Tensor, columns: Tensor, first: Tensor, stop: Tensor, strips: list[_Strip], tile: int
) -> Tensor:
    """Scores of each query's ten best relevant items, falling, -inf where there are fewer."""
    best = rows.new_full((len(rows), CUTOFF), -torch.inf)
    for part, begin, end in strips:
        most = int((stop[part] - first[part]).max())
        for left in range(begin, end, tile):
            right = min(left + tile, end)
            scores = rows[part] @ columns[left:right].T
            column = first[part].unsqueeze(1) - left + torch.arange(most, device=rows.device)
            outside = (column < 0) | (column >= torch.clamp(stop[part] - left, max=right - left).unsqueeze(1))
            found = scores.gather(1, column.clamp(0, right - left - 1)).masked_fill_(outside, -torch.inf)
            best[part] = torch.cat([best[part], found], 1).topk(CUTOFF, 1).values
    return best


def _hide_relevant(scores: Tensor, first: Tensor, stop: Tensor, left: int, strips: list[_Strip]) -> None:
    """Take the relevant items out of a tile, in place; `first` and `stop` count from the tile's edge at `left`."""
    for part, begin, end in strips:
        start, end = max(0, begin - left), min(scores.shape[1], end - left)
        if start < end:
            scores[part, start:end].masked_fill_(_within(first[part], stop[part], start, end), -torch.inf)


def _within(first: Tensor, stop: Tensor, left: int, right: int) -> Tensor:
    """Which of the columns left … right-1 lie in each row's range first … stop-1."""
    column = torch.arange(left, right, device=first.device)
    return (column >= first.unsqueeze(1)) & (column < stop.unsqueeze(1))


def _maxima(scores: Tensor) -> Tensor:
    """[rows, columns / 16]: the largest scores of interleaved groups of 16 columns."""
    return scores.view(len(scores), _GROUPED, -1).amax(1)


def _reached(scores: Tensor, maxima: Tensor | None, bar: Tensor, compared: Tensor) -> Tensor:
    """How many scores of each row reach its bar: in most tiles of a good model none, as the maxima tell at once.

    Args:
        maxima: of the scores; None compares all.
        compared: memory for that.
    """
    if maxima is not None:
        rows = (maxima.amax(1) >= bar).nonzero().squeeze(1)
        none = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        if not len(rows):
            return none
        if 2 * len(rows) <= len(scores):
            return none.index_copy_(0, rows, _count(scores[rows] >= bar[rows].unsqueeze(1)))
    return _count(torch.ge(scores, bar.unsqueeze(1), out=compared))


def _count(mask: Tensor) -> Tensor:
    """Number of True per row [rows, a multiple of 128]; a plain sum of bools takes longer than the matrix product.

    Eight bytes at a time are added as one word: 16 words cannot carry from byte to byte, nor could 255.
    """
    words = mask.view(torch.int64).view(len(mask), -1, 16).sum(-1)
    return words.view(torch.uint8).sum(-1)


def _merge_top(scores: Tensor, maxima: Tensor, top: Tensor, wanted: Tensor, lowest: Tensor) -> None:
    """Update `top`, the ten largest scores of the wanted rows, in place; scores below `lowest` do not matter.

    The ten largest lie in the ten interleaved groups of columns with the largest maxima, and what matters in those
    whose maximum does: only these are looked at.
    """
    floor = torch.maximum(lowest, top.amin(1))
    rows = (wanted & (maxima.amax(1) >= floor)).nonzero().squeeze(1)
    if not len(rows):
        return
    groups = scores.view(len(scores), _GROUPED, -1)
    if 2 * len(rows) > len(scores):  # most rows: a gather over all of them is cheaper than indexing some
        chosen = maxima.topk(min(CUTOFF, maxima.shape[1]), 1, sorted=False).indices
        found = groups.gather(2, chosen.unsqueeze(1).expand(-1, _GROUPED, -1)).flatten(1)
        top.copy_(torch.cat([top, found], 1).topk(CUTOFF, 1, sorted=False).values)
        return
    some = maxima[rows]
    places = min(CUTOFF, int((some >= floor[rows].unsqueeze(1)).sum(1).max()))
    chosen = some.topk(places, 1, sorted=False).indices
    member = torch.arange(_GROUPED, device=scores.device).view(1, _GROUPED, 1)
    found = groups[rows.view(-1, 1, 1), member, chosen.unsqueeze(1)].flatten(1)
    top[rows] = torch.cat([top[rows], found], 1).topk(CUTOFF, 1, sorted=False).values
