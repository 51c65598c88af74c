"""Retrieval examples: a few queries that found what they looked for, and a few that did not."""

from typing import Any

import torch

from mmalign.evaluation.embed import Embedded
from mmalign.evaluation.retrieval_metrics import Ranking

SHOWN = 5
"""Results kept for a query."""


def retrieval_examples(
    direction: str, queries: Embedded, gallery: Embedded, ranking: Ranking, wanted: int
) -> list[dict[str, Any]]:
    """Up to `wanted` queries, half successes (rank 1), half failures (rank above 10), spread evenly over the queries.

    Each is {"direction", "query", "member", "rank", "results": [{"key", "member", "score", "relevant"}, …]}: keys of
    samples, names of the members that stood for the modality, the rank of the best relevant item from 1, and the best
    five of the gallery with their cosines.
    """
    successes = (ranking.best_rank == 1).nonzero().flatten()
    failures = (ranking.best_rank > 10).nonzero().flatten()
    chosen = torch.cat([_spread(successes, -(-wanted // 2)), _spread(failures, wanted // 2)])
    scores = queries.vectors[chosen] @ gallery.vectors.T
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :SHOWN]
    examples = []
    for row, query in enumerate(chosen.tolist()):
        info = queries.infos[query]
        results = [
            {
                "key": gallery.infos[item].key,
                "member": gallery.infos[item].name,
                "score": float(scores[row, item]),
                "relevant": gallery.infos[item].group == info.group,
            }
            for item in best[row].tolist()
        ]
        rank = int(ranking.best_rank[query])
        examples.append(
            {"direction": direction, "query": info.key, "member": info.name, "rank": rank, "results": results}
        )
    return examples


def _spread(candidates: torch.Tensor, wanted: int) -> torch.Tensor:
    if len(candidates) <= wanted:
        return candidates
    return candidates[torch.linspace(0, len(candidates) - 1, wanted).round().long()]
