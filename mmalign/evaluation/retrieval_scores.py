"""From the ranks of queries to R@1, R@5, R@10, mAP@10 and the median rank, each with its interval and chance level."""

import torch
from torch import Tensor

from mmalign.evaluation import chance
from mmalign.evaluation.bootstrap import mean_intervals, median_interval
from mmalign.evaluation.retrieval_metrics import CUTOFF, Ranking
from mmalign.evaluation.score import Score

RECALLS = (1, 5, 10)
METRICS = (*(f"R@{k}" for k in RECALLS), f"mAP@{CUTOFF}", "median_rank")


def retrieval_scores(ranking: Ranking, rows: Tensor | None = None) -> dict[str, Score]:
    """Scores over all queries, or over those that the boolean mask `rows` [queries] selects.

    Queries without a relevant item are left out. Recalls and mAP lie between 0 and 1; the median rank starts at 1
    (lower is better; with an even number of queries it is the mean of the middle two). Intervals resample groups of
    queries. Without any query left, everything is NaN.
    """
    used = ranking.n_relevant > 0
    if rows is not None:
        used = used & rows
    if not used.any():
        return {name: Score(higher_is_better=name != "median_rank") for name in METRICS}
    rank, n_relevant = ranking.best_rank[used].cpu(), ranking.n_relevant[used].cpu()
    group, size = ranking.query_group[used].cpu(), ranking.n_gallery
    columns = [(rank <= k).double() for k in RECALLS] + [ranking.average_precision[used].cpu().double()]
    levels = [chance.recall_at_k(n_relevant, size, k) for k in RECALLS]
    levels.append(chance.average_precision_at_k(n_relevant, size, CUTOFF))
    table = torch.stack(columns, 1)
    bounds = mean_intervals(table, group).tolist()
    scores = {
        name: Score(float(column.mean()), low, high, float(level.mean()))
        for name, column, level, (low, high) in zip(METRICS, columns, levels, bounds, strict=False)
    }
    ordered = rank.sort().values.double()
    median = float(ordered[(len(rank) - 1) // 2] + ordered[len(rank) // 2]) / 2
    low, high = median_interval(rank.double(), group).tolist()
    scores["median_rank"] = Score(median, low, high, chance.median_best_rank(n_relevant, size), False)
    return scores
