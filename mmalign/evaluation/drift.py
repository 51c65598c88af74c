"""How far a text tower has moved from what it was at the start, and whether translations still find each other."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmalign.checks import at_least
from mmalign.data.config import ShardData
from mmalign.evaluation import similarity
from mmalign.evaluation.base import Evaluator, Moment, require
from mmalign.evaluation.embed import Embedded, bound_modalities, embed_modality
from mmalign.evaluation.retrieval_metrics import rank_queries
from mmalign.evaluation.retrieval_scores import METRICS, retrieval_scores
from mmalign.evaluation.score import RowMaker, Score
from mmalign.evaluation.table import Row
from mmalign.evaluation.texts import embed_texts, held_out_sentences, read_texts, text_hash

if TYPE_CHECKING:
    from mmalign.model import Aligner


class TowerDrift(Evaluator):
    """The tower's pooled outputs for fixed sentences, now and before the first stage; all measures are 1 without drift.

    Rows: "neighbour_overlap" (main: share of the 10 nearest neighbours that are the same), "mean_cosine", "linear_cka",
    "spearman_of_similarities"; see similarity. The reference is taken at the first evaluation, before stage 1, and
    belongs to the run's state; without one everything is NaN.

    Args:
        data: the sentences, a split that no replay draws from; None means 399 sentences made here.
        modality: of the text tower.
        neighbours: of each sentence.
    """

    def __init__(self, data: ShardData | None = None, modality: str = "text", neighbours: int = 10) -> None:
        self.data = data
        self.modality = modality
        self.neighbours = neighbours
        self._reference: Tensor | None = None
        self._reference_hash = ""

    def check(self, model: "Aligner") -> None:
        require("modality", self.modality, model.modalities)

    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]:
        if self.data is None:
            texts, dataset, split = held_out_sentences(), "sentences", "all"
        else:
            texts = list(dict.fromkeys(text.text for text in read_texts(self.data, self.modality)))
            dataset, split = Path(self.data.shards).name, self.data.split
        digest = text_hash(texts)
        maker = RowMaker(moment, column, dataset, split, digest)
        values = dict.fromkeys(("neighbour_overlap", "mean_cosine", "linear_cka", "spearman_of_similarities"), Score())
        if self.modality in model.encoders:
            now, _ = embed_texts(model, self.modality, texts)
            if self._reference is None and moment.stage_index == 0:
                self._reference, self._reference_hash = now, digest
            if self._reference is not None:
                if self._reference_hash != digest:
                    raise ValueError(f"{dataset}: the sentences are not those of the reference taken at the start")
                values = self._compare(self._reference, now)
        for metric, score in values.items():
            yield maker.row(self.modality, metric, score, main=metric == "neighbour_overlap", n_queries=len(texts))

    def _compare(self, old: Tensor, new: Tensor) -> dict[str, Score]:
        others = max(1, len(old) - 1)
        overlap = similarity.neighbour_overlap(old, new, self.neighbours)
        return {
            "neighbour_overlap": Score(overlap, chance=min(1.0, self.neighbours / others)),
            "mean_cosine": Score(similarity.mean_cosine(old, new)),
            "linear_cka": Score(similarity.linear_cka(old, new)),
            "spearman_of_similarities": Score(similarity.spearman_of_similarities(old, new), chance=0.0),
        }

    def state_dict(self) -> dict[str, Any]:
        if self._reference is None:
            return {}
        return {"reference": self._reference, "text_hash": self._reference_hash}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reference = state.get("reference")
        self._reference_hash = state.get("text_hash", "")


class TranslationRetrieval(Evaluator):
    """Captions in one language find those of the same item in another, by the text tower alone.

    Directions "text[fr]->text[en]" go through the shared space, "text.pooled[fr]->text.pooled[en]" through the tower's
    own outputs, before projection. The rows with [*] are means over languages; the main one is R@1 of
    "text.pooled[*]->text.pooled[en]".

    Args:
        data: its `modalities` must give members with languages: {text: "captions[*]"}.
        modality: of the text tower.
        pivot: the language that all others are compared with.
        languages: the others; None means the `most` ones with most captions.
        most: at most so many other languages.
        min_items: of a language, when `languages` is None.
        batch_size: rows that the tower sees at a time.
    """

    def __init__(
        self,
        data: ShardData,
        modality: str = "text",
        pivot: str = "en",
        languages: list[str] | None = None,
        most: int = 10,
        min_items: int = 20,
        batch_size: int = 64,
    ) -> None:
        at_least(1, batch_size=batch_size)
        self.data = data
        self.modality = modality
        self.pivot = pivot
        self.languages = languages
        self.most = most
        self.min_items = min_items
        self.batch_size = batch_size

    def check(self, model: "Aligner") -> None:
        require("modality", self.modality, bound_modalities(model, self.data))

    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]:
        maker = RowMaker(moment, column, Path(self.data.shards).name, self.data.split)
        others: list[str] = []
        parts: dict[str, Embedded] = {}
        if self.modality in bound_modalities(model, self.data):
            everything = embed_modality(model, self.data, self.modality, self.batch_size, pooled=True)
            counts = everything.languages
            others = self.languages or [
                code for code, n in counts.items() if n >= self.min_items and code != self.pivot
            ]
            others = sorted(others, key=lambda code: (-counts.get(code, 0), code))[: self.most]
            parts = {code: everything.of_language(code) for code in [*others, self.pivot]}
        for pooled in (True, False):
            name = f"{self.modality}.pooled" if pooled else self.modality
            for forth in (True, False):
                rows: list[Row] = []
                for code in sorted(others):
                    source, target = (code, self.pivot) if forth else (self.pivot, code)
                    direction = f"{name}[{source}]->{name}[{target}]"
                    rows += _direction(maker, direction, parts[source], parts[target], pooled)
                yield from rows
                ends = ("*", self.pivot) if forth else (self.pivot, "*")
                yield from _means(maker, f"{name}[{ends[0]}]->{name}[{ends[1]}]", rows, main=pooled and forth)


def _direction(maker: RowMaker, direction: str, queries: Embedded, gallery: Embedded, pooled: bool) -> list[Row]:
    sides = [part.pooled if pooled and part.pooled is not None else part.vectors for part in (queries, gallery)]
    ranking = rank_queries(sides[0], sides[1], queries.group, gallery.group)
    used = int((ranking.n_relevant > 0).sum())
    missing = queries.samples - len(queries.present & gallery.present)
    return [
        maker.row(direction, metric, score, n_queries=used, n_gallery=ranking.n_gallery, n_missing=missing)
        for metric, score in retrieval_scores(ranking).items()
    ]


def _means(maker: RowMaker, direction: str, rows: list[Row], main: bool) -> Iterator[Row]:
    """Means over languages of the measured values and of chance; NaN when nothing was measured."""
    for metric in METRICS:
        found = [row for row in rows if row.metric == metric and row.value == row.value]
        score = Score(higher_is_better=metric != "median_rank")
        if found:
            mean, level = (
                sum(numbers) / len(found) for numbers in ([r.value for r in found], [r.chance for r in found])
            )
            score = Score(mean, chance=level, higher_is_better=metric != "median_rank")
        sizes = torch.tensor([[row.n_queries, row.n_gallery, row.n_missing] for row in found]).view(-1, 3).sum(0)
        n_queries, n_gallery, n_missing = (int(size) for size in sizes)
        yield maker.row(direction, metric, score, main and metric == "R@1", False, n_queries, n_gallery, n_missing)
