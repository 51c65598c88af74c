"""How far two models' views of the same rows are apart."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmalign.batch import Embeddings

_BAND_NUMBERS = 1 << 24
"""Similarities of a band of anchors: 64 MiB in float32."""


def divergence_sum(
    anchors: Float[Tensor, "queries dim"],
    others: Float[Tensor, "gallery dim"],
    old_anchors: Float[Tensor, "queries dim"],
    old_others: Float[Tensor, "gallery dim"],
    own: Bool[Tensor, " queries"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Σ over own anchors of KL(old ‖ new) between distributions over `others`: softmax(cosine / temperature).

    Anchors that make more than one band are taken band by band, each computed again in the backward pass: no matrix of
    queries by gallery is ever whole.
    """
    height = max(1, _BAND_NUMBERS // max(1, len(others)))
    bands = list(zip(anchors[own].split(height), old_anchors[own].split(height), strict=True))
    if len(bands) == 1:
        return _divergence(*bands[0], others, old_others, temperature)
    parts = [
        checkpoint(_divergence, *band, others, old_others, temperature, use_reentrant=False, preserve_rng_state=False)
        for band in bands
    ]
    return torch.stack(parts).sum()


def _divergence(anchors: Tensor, old_anchors: Tensor, others: Tensor, old_others: Tensor, temperature: float) -> Tensor:
    old = F.log_softmax(old_anchors @ old_others.T / temperature, dim=1)
    new = F.log_softmax(anchors @ others.T / temperature, dim=1)
    return F.kl_div(new, old, log_target=True, reduction="sum")


def pair_divergence(
    embeddings: Embeddings,
    old: Embeddings,
    pairs: list[tuple[str, str]],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean KL(old ‖ new) of the similarity distributions of pairs of modalities, in both directions.

    Only rows count that `old` has; the anchors of one modality are compared with all rows of the other. As for losses,
    only `embeddings.rows` are anchors, and what the ranks return adds up to the mean over all anchors.
    """
    total, count = zero(embeddings), 0
    start, stop = embeddings.rows or (0, len(embeddings.group))
    for a, b in pairs:
        if a not in old.vectors or b not in old.vectors:
            continue
        for first, second in ((a, b), (b, a)):
            rows = old.present[first].nonzero().squeeze(1)
            columns = old.present[second].nonzero().squeeze(1)
            if len(rows) == 0 or len(columns) == 0:
                continue
            new_first, new_second = embeddings.vectors[first][rows], embeddings.vectors[second][columns]
            old_first, old_second = old.vectors[first][rows], old.vectors[second][columns]
            own = (rows >= start) & (rows < stop)
            total = total + divergence_sum(
                new_first, new_second, old_first.to(new_first), old_second.to(new_second), own, temperature
            )
            count += len(rows)
    return total / max(count, 1)


def distance(embeddings: Embeddings, old: Embeddings, modalities: list[str]) -> Float[Tensor, ""]:
    """Mean squared distance of old and new vectors over rows and modalities that `old` has; 0 … 4 for unit vectors.

    As for losses, what the ranks return adds up.
    """
    total, count = zero(embeddings), 0
    start, stop = embeddings.rows or (0, len(embeddings.group))
    for name in modalities:
        if name not in old.vectors:
            continue
        present = old.present[name]
        difference = embeddings.vectors[name] - old.vectors[name].to(embeddings.vectors[name])
        total = total + (difference[start:stop].square().sum(1) * present[start:stop]).sum()
        count += int(present.sum())
    return total / max(count, 1)


def zero(embeddings: Embeddings) -> Float[Tensor, ""]:
    """0 with a gradient of 0 for every vector."""
    parts = [vectors[:0].sum() for vectors in embeddings.vectors.values()]
    return torch.stack(parts).sum() if parts else torch.zeros((), device=embeddings.group.device)
