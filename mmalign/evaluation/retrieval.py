"""Zero-shot retrieval between all modalities of a data set, and the fused embedding."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.checks import at_least
from mmalign.data.config import ShardData
from mmalign.evaluation.base import Evaluator, Moment, require
from mmalign.evaluation.diagnostics import modality_gap_plot
from mmalign.evaluation.embed import Embedded, bound_modalities, embed_modality, fuse
from mmalign.evaluation.examples import retrieval_examples
from mmalign.evaluation.retrieval_metrics import Ranking, rank_queries
from mmalign.evaluation.retrieval_scores import METRICS, retrieval_scores
from mmalign.evaluation.score import RowMaker, Score, with_main
from mmalign.evaluation.table import Row

if TYPE_CHECKING:
    from mmalign.model import Aligner

FUSED = "fused"


class Retrieval(Evaluator):
    """R@1, R@5, R@10, mAP@10 and median rank in every direction; see retrieval_metrics for the rules.

    Every variant of a modality (each caption, each recording) is a query and a gallery item; items of the same group
    are relevant for each other. Directions are written "image->text". With a fusion there are three more kinds:

      * "fused->text": the fusion of all other modalities that a sample has, never of the text itself;
      * "text->fused": the reverse, over the same fused vectors;
      * "image+audio->text": the fusion of exactly these, for the samples that have them all.

    Where captions or recordings have a language, "image->text[fr]" has only the French gallery, "text[fr]->image" only
    the French queries, and "audio[fr]->text[fr]" both.

    Args:
        data: the data set; without `modalities`, all encoders of the model with the default members of their kind.
        gallery: only the first so many samples.
        dataset: name in the rows; None means that of the shard directory.
        directions: only these; None means all.
        languages: whether there are rows by language.
        min_language_items: a language with fewer items than this on its side has no rows of its own.
        main_direction: of the column's main score; None means "image->text", or the first direction if there is none.
        main_metric: of the column's main score.
        batch_size: rows that a tower sees at a time.
        workers: processes that read and decode; None takes as many as the stages (`runtime.workers`), and fewer or none
            for small data sets: one for every 512 samples.
        examples_per_direction: queries kept in `examples`, half of them successes.

    Attributes (of the last evaluation):
        examples: queries with what they found, for the report; see examples.retrieval_examples.
        diagnostics: the modality gap, for the report; see diagnostics.modality_gap_plot.
    """

    def __init__(
        self,
        data: ShardData,
        gallery: int | None = None,
        dataset: str | None = None,
        directions: list[str] | None = None,
        languages: bool = True,
        min_language_items: int = 20,
        main_direction: str | None = None,
        main_metric: str = "R@1",
        batch_size: int = 64,
        workers: int | None = None,
        examples_per_direction: int = 6,
    ) -> None:
        at_least(1, batch_size=batch_size, gallery=gallery)
        at_least(0, workers=workers)
        for direction in [*(directions or []), *([main_direction] if main_direction else [])]:
            if direction.count("->") != 1 or not all(direction.split("->")):
                raise ValueError(f'{direction!r} is no direction; write it as "image->text"')
        if main_metric not in METRICS:
            raise ValueError(f"main_metric {main_metric!r} is none of {', '.join(METRICS)}")
        self.data = data if gallery is None else replace(data, limit=gallery)
        self.dataset = dataset or Path(data.shards).name
        self.directions = directions
        self.languages = languages
        self.min_language_items = min_language_items
        self.main_direction = main_direction
        self.main_metric = main_metric
        self.batch_size = batch_size
        self.workers = workers
        self.examples_per_direction = examples_per_direction
        self.examples: list[dict[str, Any]] = []
        self.diagnostics: dict[str, Any] = {}

    def check(self, model: "Aligner") -> None:
        bound = list(bound_modalities(model, self.data))
        known = [*bound, *([FUSED] if model.fusion is not None else [])]
        given = {"main_direction": [self.main_direction] if self.main_direction else []}
        for key, directions in (given | {"directions": self.directions or []}).items():
            for direction in directions:
                for name in re.split(r"->|\+", re.sub(r"\[[^]]*\]", "", direction)):
                    require(f"{key}: {direction!r}", name, known)
                if "+" in direction and model.fusion is None:
                    raise ValueError(f"{key}: {direction!r} needs a fusion, and the model has none")
        if len(bound) < 2 and not self.directions and not self.main_direction:
            raise ValueError(f"data.modalities: retrieval needs two modalities, there are {bound}")

    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]:
        names = list(bound_modalities(model, self.data))
        embedded = {
            name: embed_modality(model, self.data, name, self.batch_size, self.dataset, self.workers) for name in names
        }
        if self.data.modalities is None:  # the data set need not have what the model could read
            embedded = {name: part for name, part in embedded.items() if part.infos}
        samples = max((part.samples for part in embedded.values()), default=0)
        self.examples = []
        self.diagnostics = modality_gap_plot({name: part.vectors for name, part in embedded.items() if part.infos})
        maker = RowMaker(moment, column, self.dataset, self.data.split)
        directions = self.directions or all_directions(list(embedded), model.fusion is not None)
        first = "image->text" if "image->text" in directions or not directions else directions[0]
        main = self.main_direction or first
        rows: list[Row] = []
        for direction in dict.fromkeys([*directions, re.sub(r"\[[^]]*\]", "", main)]):
            rows += self._direction(model, maker, embedded, direction, samples)
        yield from with_main(rows, main, self.main_metric)

    def _direction(
        self, model: "Aligner", maker: RowMaker, embedded: dict[str, Embedded], direction: str, samples: int
    ) -> list[Row]:
        """Rows of one direction: over all items, then by language."""
        source, target = direction.split("->")
        queries, gallery = side(model, embedded, source, target), side(model, embedded, target, source)
        emergent = frozenset((_trained_as(source), _trained_as(target))) not in maker.moment.trained_pairs
        rows: list[Row] = []

        def add(name: str, some: Embedded | None, others: Embedded | None) -> Ranking | None:
            scores = {metric: Score(higher_is_better=metric != "median_rank") for metric in METRICS}
            asked, size, missing, ranking = 0, 0, samples, None
            if some is not None and others is not None:
                ranking = rank(some, others)
                scores = retrieval_scores(ranking)
                asked, size = int((ranking.n_relevant > 0).sum()), ranking.n_gallery
                missing = samples - len(some.present & others.present)
            rows.extend(
                maker.row(name, metric, score, False, emergent, n_queries=asked, n_gallery=size, n_missing=missing)
                for metric, score in scores.items()
            )
            return ranking

        ranking = add(direction, queries, gallery)
        if ranking is not None and queries is not None and gallery is not None:
            self.examples += retrieval_examples(direction, queries, gallery, ranking, self.examples_per_direction)
            if self.languages:
                for suffixes, some, others in self._by_language(queries, gallery):
                    add(f"{source}{suffixes[0]}->{target}{suffixes[1]}", some, others)
        return rows

    def _by_language(
        self, queries: Embedded, gallery: Embedded
    ) -> Iterator[tuple[tuple[str, str], Embedded, Embedded]]:
        asked, found = (
            [code for code, count in items.languages.items() if count >= self.min_language_items]
            for items in (queries, gallery)
        )
        for code in asked:
            if code in found:
                yield (f"[{code}]", f"[{code}]"), queries.of_language(code), gallery.of_language(code)
            elif not gallery.languages:
                yield (f"[{code}]", ""), queries.of_language(code), gallery
        for code in found:
            if not queries.languages:
                yield ("", f"[{code}]"), queries, gallery.of_language(code)


def all_directions(names: list[str], fusion: bool) -> list[str]:
    """Every ordered pair; with a fusion also fused with each, and each larger subset to what it leaves out."""
    pairs = [f"{a}->{b}" for a in names for b in names if a != b]
    if not fusion or len(names) < 2:
        return pairs
    for name in names:
        others = [other for other in names if other != name]
        pairs += [f"{FUSED}->{name}", f"{name}->{FUSED}"]
        subsets = [subset for size in range(2, len(others) + 1) for subset in combinations(others, size)]
        pairs += [f"{'+'.join(subset)}->{name}" for subset in subsets]
    return pairs


def side(model: "Aligner", embedded: dict[str, Embedded], name: str, opposite: str) -> Embedded | None:
    """One side of a direction; None when model or data lack it. A fusion never sees the opposite side."""
    if name in embedded:
        return embedded[name] if embedded[name].infos else None
    hidden = set(opposite.split("+"))
    wanted = list(embedded) if name == FUSED else name.split("+")
    parts = {part: embedded[part] for part in wanted if part in embedded and part not in hidden}
    if model.fusion is None or not parts or (name != FUSED and len(parts) < len(wanted)):
        return None
    fused = fuse(model, parts, complete=name != FUSED)
    return fused if fused.infos else None


def rank(queries: Embedded, gallery: Embedded) -> Ranking:
    return rank_queries(queries.vectors, gallery.vectors, queries.group, gallery.group)


def _trained_as(name: str) -> str:
    return FUSED if "+" in name else name
