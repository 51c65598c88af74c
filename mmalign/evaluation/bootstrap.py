"""95 % percentile bootstrap intervals that resample clusters, not single measurements.

Queries of one group (the five captions of a picture, the recordings of one sentence) are not independent, so that
groups are drawn, with all their queries: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, §3.8.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

DRAWS = 1000
SEED = 20240229
"""Fixed: the same numbers give the same interval."""

_CELLS = 4_000_000
"""Numbers in memory at a time."""


def mean_intervals(
    values: Float[Tensor, "queries metrics"], cluster: Int[Tensor, " queries"], draws: int = DRAWS, seed: int = SEED
) -> Float[Tensor, "metrics 2"]:
    """Intervals of the means of each column. NaN with fewer than two clusters: nothing can be said then."""
    return ratio_intervals(values, torch.ones_like(values), cluster, draws, seed)


def ratio_intervals(
    above: Float[Tensor, "queries metrics"],
    below: Float[Tensor, "queries metrics"],
    cluster: Int[Tensor, " queries"],
    draws: int = DRAWS,
    seed: int = SEED,
) -> Float[Tensor, "metrics 2"]:
    """Intervals of sum(above) / sum(below) of each column, such as bits per byte over texts of unequal length."""
    ids, index = cluster.unique(return_inverse=True)
    if len(ids) < 2:
        return above.new_full((above.shape[1], 2), torch.nan)
    columns = torch.cat([above, below], 1).double()
    sums = torch.zeros(len(ids), columns.shape[1], dtype=torch.double).index_add_(0, index, columns)
    drawn = torch.cat([weights @ sums for weights in _draw_clusters(len(ids), len(ids), draws, seed)])
    top, bottom = drawn.chunk(2, dim=1)
    return _interval(top / bottom).to(above.dtype)


def median_interval(
    values: Float[Tensor, " queries"], cluster: Int[Tensor, " queries"], draws: int = DRAWS, seed: int = SEED
) -> Float[Tensor, "2"]:
    """Interval of the median. NaN with fewer than two clusters."""
    ids, index = cluster.unique(return_inverse=True)
    if len(ids) < 2:
        return values.new_full((2,), torch.nan)
    ordered, order = values.sort()
    index = index[order]
    drawn = []
    for weights in _draw_clusters(len(ids), len(values), draws, seed):
        below = weights[:, index].cumsum(1)
        total = below[:, -1:]
        middle = torch.cat([(total + 1) // 2, total // 2 + 1], 1)  # the middle one, or the two middle ones
        drawn.append(ordered[torch.searchsorted(below, middle)].double().mean(1, keepdim=True))
    return _interval(torch.cat(drawn))[0].to(values.dtype)


def _draw_clusters(n_clusters: int, width: int, draws: int, seed: int) -> Iterator[Float[Tensor, "some clusters"]]:
    """How often each cluster is drawn, for a few draws at a time."""
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, min(draws, _CELLS // max(width, n_clusters)))
    for start in range(0, draws, chunk):
        n = min(chunk, draws - start)
        picked = torch.randint(n_clusters, (n, n_clusters), generator=generator)
        picked += torch.arange(n).unsqueeze(1) * n_clusters
        yield torch.bincount(picked.flatten(), minlength=n * n_clusters).view(n, n_clusters).double()


def _interval(drawn: Float[Tensor, "draws metrics"]) -> Float[Tensor, "metrics 2"]:
    return torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0).T
