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

_STRIP = 64
"""Queries at a time where only the relevant items of a few groups matter."""

_SELECTED = 1 << 18
"""Relevant scores that are sorted at a time."""

_FEW = 4
"""Groups a row up to which looking at each beats looking at everything."""

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
    n_relevant = stop - first
    places = torch.arange(1, 1 + min(CUTOFF, max(1, int(n_relevant.max()))), device=rows.device)
    relevant = _relevant_scores(rows, columns, first, stop, strips, len(places), tile)
    bar = torch.where(relevant.isfinite(), relevant - TIE_TOLERANCE, torch.inf)
    # How many others stand before each of the best relevant items: before the best counted exactly, before the rest as
    # far as their places may be among the first ten.
    before = torch.zeros(bar.shape, dtype=torch.long, device=rows.device)
    width = min(tile, max(1, -(-len(columns) // 128)) * 128)
    scores = rows.new_empty(len(rows), width)
    maxima = rows.new_empty(len(rows), width // _GROUPED)
    compared = torch.empty(len(rows), width, dtype=torch.bool, device=rows.device)
    crowded = False  # in most rows of the last tile a score reached the bar: then it pays to compare all at once
    for left in range(0, len(columns), width):
        right = min(left + width, len(columns))
        torch.mm(rows, columns[left:right].T, out=scores[:, : right - left])
        scores[:, right - left :] = -torch.inf
        _hide_relevant(scores[:, : right - left], first - left, stop - left, left, strips)
        # The worst relevant item that may still be among the first ten; -1 where not even the best may.
        last = ((bar < torch.inf) & (_ranks(places, before) <= CUTOFF)).sum(1) - 1
        several = last > 0
        look = not crowded or bool(several.any())
        if look:
            torch.amax(scores.view(len(scores), _GROUPED, -1), 1, out=maxima)
        peaks = maxima.amax(1) if look else None
        reached = _reached(scores, peaks, bar[:, 0], compared)
        before[:, 0] += reached
        crowded = 2 * int(reached.count_nonzero()) > len(rows)
        if peaks is not None:
            floor = bar.gather(1, last.clamp_min(0).unsqueeze(1))
            _count_before(scores, maxima, several & (peaks >= floor.squeeze(1)), floor, bar, before)
    rank = _ranks(places, before)
    hit = (rank <= CUTOFF) & relevant.isfinite()
    missing = n_relevant == 0
    precision = (hit * places / rank).sum(1) / n_relevant.clamp(1, CUTOFF)
    return rank[:, 0].masked_fill(missing, 0), precision.masked_fill(missing, torch.nan)


def _ranks(places: Tensor, before: Tensor) -> Tensor:
    """What stands before the best stands before the rest."""
    return places + torch.maximum(before, before[:, :1])


def _relevant_scores(
    rows: Tensor, columns: Tensor, first: Tensor, stop: Tensor, strips: list[_Strip], places: int, tile: int
) -> Tensor:
    """Scores of each query's best relevant items, falling, -inf where there are fewer."""
    best = rows.new_full((len(rows), places), -torch.inf)
    begins = torch.cat([first.new_full((len(first[part]),), begin) for part, begin, _ in strips])
    widest = max(end - begin for _, begin, end in strips)
    scores = rows.new_empty(len(rows), min(widest, tile))
    most = torch.arange(min(int((stop - first).max()), tile), device=rows.device)
    at_a_time = max(1, _SELECTED // max(1, len(most)))
    for offset in range(0, widest, tile):
        for part, begin, end in strips:
            left, right = begin + offset, min(begin + offset + tile, end)
            if left < right:
                torch.mm(rows[part], columns[left:right].T, out=scores[part, : right - left])
        for top in range(0, len(rows), at_a_time):
            part = slice(top, top + at_a_time)
            column = (first[part] - begins[part] - offset).clamp_min_(0).unsqueeze(1) + most
            outside = column >= (stop[part] - begins[part] - offset).clamp_max_(tile).unsqueeze(1)
            found = scores[part].gather(1, column.clamp_max_(scores.shape[1] - 1)).masked_fill_(outside, -torch.inf)
            best[part] = torch.cat([best[part], found], 1).topk(places, 1).values
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


def _reached(scores: Tensor, peaks: Tensor | None, bar: Tensor, compared: Tensor) -> Tensor:
    """How many scores of each row reach its bar: in most tiles of a good model none, as the peaks tell at once.

    Args:
        peaks: of the rows; None compares all.
        compared: memory for that.
    """
    if peaks is not None:
        rows = (peaks >= bar).nonzero().squeeze(1)
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


def _count_before(scores: Tensor, maxima: Tensor, wanted: Tensor, floor: Tensor, bar: Tensor, before: Tensor) -> None:
    """Add to `before[:, 1:]` how many scores of the wanted rows reach each bar, or ten where there are more.

    Args:
        maxima: of interleaved groups of 16 columns; they tell where to look.
        floor: the lowest bar of each row that matters.
    """
    rows = wanted.nonzero().squeeze(1)
    if not len(rows):
        return
    groups = scores.view(len(scores), _GROUPED, -1)
    found = maxima[rows] >= floor[rows]
    if int(found.count_nonzero()) <= _FEW * len(scores):
        which, group = found.nonzero(as_tuple=True)
        rows = rows[which]
        counts = (groups[rows, :, group].unsqueeze(2) >= bar[rows, 1:].unsqueeze(1)).sum(1)
    else:  # the ten largest scores lie in the ten groups with the largest maxima
        group = maxima[rows].topk(min(CUTOFF, maxima.shape[1]), 1, sorted=False).indices
        member = torch.arange(_GROUPED, device=scores.device).view(1, _GROUPED, 1)
        best = groups[rows.view(-1, 1, 1), member, group.unsqueeze(1)].flatten(1)
        counts = torch.stack([(best >= bar[rows, k].unsqueeze(1)).sum(1) for k in range(1, bar.shape[1])], 1)
    before[:, 1:].index_add_(0, rows, counts)
