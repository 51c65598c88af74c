"""How far two sets of embeddings of the same texts agree: what a tower's drift is measured with.

Both are [texts, width]; row i of either is text i. All four are 1 for a tower that did not change.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def mean_cosine(old: Float[Tensor, "texts width"], new: Float[Tensor, "texts width"]) -> float:
    """Mean cosine between the old and the new embedding of a text; sees rotations, as a frozen projection does."""
    return float(F.cosine_similarity(old.double(), new.double(), dim=1).mean())


def neighbour_overlap(old: Float[Tensor, "texts width"], new: Float[Tensor, "texts new_width"], k: int = 10) -> float:
    """Mean share of a text's k nearest neighbours (by cosine, itself left out) that are the same before and after.

    k is lowered to the number of other texts; among equally near ones the first counts as nearer.
    """
    k = min(k, len(old) - 1)
    first, second = (_neighbours(vectors, k) for vectors in (old, new))
    member = torch.zeros(len(old), len(old), dtype=torch.bool).scatter_(1, first, True)
    return float(member.gather(1, second).double().mean())


def linear_cka(old: Float[Tensor, "texts width"], new: Float[Tensor, "texts new_width"]) -> float:
    """Linear centred kernel alignment: |Y'X|_F^2 / (|X'X|_F |Y'Y|_F) with centred columns.

    Invariant to rotation and scale (Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019).
    NaN if either set is constant.
    """
    x, y = old.double() - old.double().mean(0), new.double() - new.double().mean(0)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def spearman_of_similarities(old: Float[Tensor, "texts width"], new: Float[Tensor, "texts new_width"]) -> float:
    """Spearman's rank correlation between the cosines of all pairs of texts before and after; ties share their rank.

    Representational similarity analysis (Kriegeskorte et al. 2008). NaN if all pairs of either set are equally similar.
    """
    above = torch.triu_indices(len(old), len(old), offset=1)
    ranks = []
    for vectors in (old, new):
        unit = F.normalize(vectors.double(), dim=1)
        # rounded, so that pairs that are equally similar in exact arithmetic share their rank
        ranks.append(_ranks((unit @ unit.T)[above[0], above[1]].round(decimals=12)))
    x, y = (r - r.mean() for r in ranks)
    return float((x @ y) / (x.norm() * y.norm()))


def _neighbours(vectors: Tensor, k: int) -> Tensor:
    unit = F.normalize(vectors.double(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return similarity.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values share the mean of theirs."""
    _, index, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1).double() / 2)[index]
