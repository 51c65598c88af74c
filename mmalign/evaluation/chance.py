"""What a model that knows nothing scores: expectations over uniformly random orders of the gallery, in closed form."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def recall_at_k(n_relevant: Int[Tensor, " queries"], n_gallery: int, k: int) -> Float[Tensor, " queries"]:
    """P(one of n relevant among the first k of N) = 1 - C(N-n, k) / C(N, k), the hypergeometric law; float64."""
    n = n_relevant.double()
    # by logarithms: 1 - (1 - 1e-6) would lose most digits
    none = sum(torch.log1p(-(n / (n_gallery - i)).clamp(max=1)) for i in range(min(k, n_gallery)))
    return -torch.expm1(none + torch.zeros_like(n))


def average_precision_at_k(n_relevant: Int[Tensor, " queries"], n_gallery: int, k: int) -> Float[Tensor, " queries"]:
    """E[AP@k] with AP@k = sum_{i<=k} P(i) rel(i) / min(k, n); exact, float64.

    E[rel(i) P(i)] = 1/i (P(i relevant) + sum_{j<i} P(i and j relevant)) = 1/i (n/N + (i-1) n(n-1) / (N(N-1))).
    """
    n, size = n_relevant.double(), n_gallery
    both = n * (n - 1) / max(size * (size - 1), 1)
    total = torch.zeros_like(n)
    for place in range(1, min(k, size) + 1):
        total += (n / max(size, 1) + (place - 1) * both) / place
    return total / n.clamp(1, k)


def median_best_rank(n_relevant: Int[Tensor, " queries"], n_gallery: int) -> float:
    """Median of the best relevant item's rank when query and order are random; NaN without queries.

    The smallest r with mean over queries of P(rank <= r) >= 1/2; queries without relevant items are left out.
    """
    counts, times = n_relevant[n_relevant > 0].unique(return_counts=True)
    if len(counts) == 0:
        return math.nan
    low, high = 1, n_gallery
    while low < high:
        middle = (low + high) // 2
        beyond = _none_among_first(counts.double(), n_gallery, float(middle))
        if (beyond * times).sum() / times.sum() <= 0.5 + 1e-12:
            high = middle
        else:
            low = middle + 1
    return float(low)


def _none_among_first(n: Tensor, size: int, k: float) -> Tensor:
    """C(N-n, k) / C(N, k), by logarithms of factorials; 0 where k > N-n."""
    rest = size - n
    steps = torch.lgamma(rest + 1) - torch.lgamma((rest - k).clamp(min=0) + 1)
    total = math.lgamma(size + 1) - math.lgamma(size - k + 1)
    return torch.where(rest >= k, torch.exp(steps - total), torch.zeros_like(steps))
