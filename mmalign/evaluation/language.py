"""Language ability of a causal text tower: bits per byte on held-out text, minimal pairs, cloze.

A tower that is no language model, because it has no `score_text`, gets NaN.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.config import ShardData
from mmalign.evaluation.base import Evaluator, Moment, require
from mmalign.evaluation.bootstrap import mean_intervals, ratio_intervals
from mmalign.evaluation.cloze_items import cloze_items
from mmalign.evaluation.minimal_pairs import PAIRS_PER_PHENOMENON, minimal_pairs
from mmalign.evaluation.ranks import gather_objects, rank_and_world
from mmalign.evaluation.score import RowMaker, Score
from mmalign.evaluation.table import Row
from mmalign.evaluation.texts import read_texts, text_hash

if TYPE_CHECKING:
    from mmalign.model import Aligner


def score_texts(model: "Aligner", modality: str, texts: list[str]) -> Float[Tensor, "texts 3"] | None:
    """Per text the negative log-likelihood in nats, tokens predicted and bytes, in float64; None without a language
    model. Ranks share the work."""
    tower: Any = dict(model.encoders.items()).get(modality)
    if not hasattr(tower, "score_text"):
        return None
    rank, world = rank_and_world()
    mine = range(rank, len(texts), world)
    scored = tower.score_text([texts[i] for i in mine]) if len(mine) else ()
    columns = [column.double().cpu() for column in scored]
    result = torch.zeros(len(texts), 3, dtype=torch.float64)
    for indices, part in gather_objects((list(mine), torch.stack(columns, 1) if columns else None)):
        if part is not None:
            result[indices] = part
    return result


class LanguageModeling(Evaluator):
    """Bits per byte (main) and perplexity per token on fixed text, teacher-forced; lower is better.

    Bits per byte compare towers of any tokenizer: nats / (ln 2 · bytes of UTF-8). Chance is 8, a uniform guess.

    Args:
        data: the text; a split that no replay draws from.
        modality: of the text tower.
        dataset: name in the rows; None means that of the shard directory.
    """

    def __init__(self, data: ShardData, modality: str = "text", dataset: str | None = None) -> None:
        self.data = data
        self.modality = modality
        self.dataset = dataset or Path(data.shards).name

    def check(self, model: "Aligner") -> None:
        require("modality", self.modality, model.modalities)

    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]:
        texts = read_texts(self.data, self.modality)
        maker = RowMaker(moment, column, self.dataset, self.data.split, text_hash([text.text for text in texts]))
        scored = score_texts(model, self.modality, [text.text for text in texts])
        bits, perplexity = Score(chance=8.0, higher_is_better=False), Score(higher_is_better=False)
        if scored is not None:
            nats = scored[:, :1].expand(-1, 2)
            units = torch.stack([scored[:, 2] * math.log(2), scored[:, 1]], 1)
            values = (nats.sum(0) / units.sum(0)).tolist()
            bounds = ratio_intervals(nats, units, torch.tensor([text.group for text in texts])).tolist()
            (low, high), (lower, upper) = bounds
            bits = Score(values[0], low, high, chance=8.0, higher_is_better=False)
            perplexity = Score(math.exp(values[1]), math.exp(lower), math.exp(upper), higher_is_better=False)
        yield maker.row(self.modality, "bits_per_byte", bits, main=True, n_queries=len(texts))
        yield maker.row(self.modality, "perplexity_per_token", perplexity, n_queries=len(texts))


class MinimalPairs(Evaluator):
    """Share of grammatical minimal pairs of which the good sentence is the likelier one; see minimal_pairs.

    The split of a row is a phenomenon; "all" is the main one. Equally likely sentences count as wrong. Chance is 1/2.

    Args:
        modality: of the text tower.
        pairs_per_phenomenon: the first so many of each.
    """

    def __init__(self, modality: str = "text", pairs_per_phenomenon: int = PAIRS_PER_PHENOMENON) -> None:
        if not 1 <= pairs_per_phenomenon <= PAIRS_PER_PHENOMENON:
            raise ValueError(f"pairs_per_phenomenon is {pairs_per_phenomenon}, must be 1 to {PAIRS_PER_PHENOMENON}")
        self.modality = modality
        self.pairs_per_phenomenon = pairs_per_phenomenon

    def check(self, model: "Aligner") -> None:
        require("modality", self.modality, model.modalities)

    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]:
        everything, taken = minimal_pairs(), dict[str, int]()
        pairs = []
        for pair in everything:
            taken[pair.phenomenon] = taken.get(pair.phenomenon, 0) + 1
            if taken[pair.phenomenon] <= self.pairs_per_phenomenon:
                pairs.append(pair)
        texts = [text for pair in pairs for text in (pair.good, pair.bad)]
        scored = score_texts(model, self.modality, texts)
        right = None if scored is None else scored[0::2, 0] < scored[1::2, 0]
        names = [pair.phenomenon for pair in pairs]
        yield from _accuracies(moment, column, "minimal_pairs", self.modality, {"accuracy": right}, names, 0.5, texts)


class Cloze(Evaluator):
    """Share of factual sentences whose right ending is the likeliest of four; see cloze_items.

    "accuracy" (main) compares likelihoods, "accuracy_per_byte" likelihoods per byte of the ending, which does not
    favour short ones. The split of a row is a table of facts; "all" is the main one. Chance is 1/4.

    Args:
        modality: of the text tower.
    """

    def __init__(self, modality: str = "text") -> None:
        self.modality = modality

    def check(self, model: "Aligner") -> None:
        require("modality", self.modality, model.modalities)

    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]:
        items = cloze_items()
        texts = [sentence for item in items for sentence in item.sentences]
        scored = score_texts(model, self.modality, texts)
        right: dict[str, Tensor | None] = {"accuracy": None, "accuracy_per_byte": None}
        if scored is not None:
            nats = scored[:, 0].view(-1, 4)
            lengths = torch.tensor([[len(ending.encode()) for ending in item.endings] for item in items])
            for metric, cost in (("accuracy", nats), ("accuracy_per_byte", nats / lengths)):
                right[metric] = cost[:, 0] < cost[:, 1:].amin(1)
        names = [item.table for item in items]
        yield from _accuracies(moment, column, "cloze", self.modality, right, names, 0.25, texts)


def _accuracies(
    moment: Moment,
    column: str,
    dataset: str,
    modality: str,
    right: dict[str, Tensor | None],
    parts: list[str],
    chance: float,
    texts: list[str],
) -> Iterator[Row]:
    """Rows of each metric over all items and over each part; the first metric over all is the main one."""
    for number, (metric, hits) in enumerate(right.items()):
        for part in ["all", *dict.fromkeys(parts)]:
            wanted = torch.tensor([part in ("all", name) for name in parts])
            score = Score(chance=chance)
            if hits is not None:
                values = hits[wanted].double()
                low, high = mean_intervals(values.unsqueeze(1), torch.arange(len(values)))[0].tolist()
                score = Score(float(values.mean()), low, high, chance)
            maker = RowMaker(moment, column, dataset, part, text_hash(texts))
            main = part == "all" and number == 0
            yield maker.row(modality, metric, score, main=main, n_queries=int(wanted.sum()))
