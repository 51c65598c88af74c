"""Zero-shot classification: which class's prompts is an item nearest to?"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmalign.checks import at_least
from mmalign.data.config import ShardData
from mmalign.data.faults import SampleError
from mmalign.data.shardset import ShardSet
from mmalign.evaluation import chance
from mmalign.evaluation.base import Evaluator, Moment, require
from mmalign.evaluation.bootstrap import mean_intervals
from mmalign.evaluation.embed import bound_modalities, embed_modality
from mmalign.evaluation.retrieval_metrics import TIE_TOLERANCE
from mmalign.evaluation.score import RowMaker, Score
from mmalign.evaluation.table import Row
from mmalign.evaluation.texts import embed_texts

if TYPE_CHECKING:
    from mmalign.model import Aligner

PLACES = (1, 5)
METRICS = ("accuracy", "accuracy@5", "mean_class_accuracy")


class ZeroShotClassification(Evaluator):
    """Accuracy ("accuracy", main), top-5 accuracy and the mean over classes, with text prompts as classifiers.

    A class's vector is the mean of the unit vectors of its prompts, one per template (Radford et al., "Learning
    Transferable Visual Models from Natural Language Supervision", 2021). An item may have several labels; any of them
    is right. Ties count against the model, as in retrieval.

    Args:
        data: its json members hold the labels; items without one are missing.
        label: the field, with a string or a list of strings.
        templates: prompts, each with "{}" where the class stands.
        classes: None means all that occur in the data, sorted.
        class_names: how a class is called in prompts, where that differs.
        modality: what is classified.
        text_modality: what reads the prompts.
        dataset: name in the rows; None means that of the shard directory.
        batch_size: rows that a tower sees at a time.
    """

    def __init__(
        self,
        data: ShardData,
        label: str,
        templates: list[str] | None = None,
        classes: list[str] | None = None,
        class_names: dict[str, str] | None = None,
        modality: str = "image",
        text_modality: str = "text",
        dataset: str | None = None,
        batch_size: int = 64,
    ) -> None:
        at_least(1, batch_size=batch_size)
        self.templates = ["a picture of a {}", "{}"] if templates is None else templates
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"the template {template!r} has no {{}} for the class")
        self.data = data
        self.label = label
        self.classes = classes
        self.class_names = class_names or {}
        self.modality = modality
        self.text_modality = text_modality
        self.dataset = dataset or Path(data.shards).name
        self.batch_size = batch_size

    def check(self, model: "Aligner") -> None:
        require("modality", self.modality, bound_modalities(model, self.data))
        require("text_modality", self.text_modality, model.modalities)

    def evaluate(self, model: "Aligner", moment: Moment, column: str) -> Iterator[Row]:
        maker = RowMaker(moment, column, self.dataset, self.data.split)
        labels = read_labels(self.data, self.label)
        classes = self.classes or sorted({label for found in labels for label in found})
        scores, used = dict.fromkeys(METRICS, Score()), 0
        if self.modality in bound_modalities(model, self.data) and self.text_modality in model.encoders and classes:
            items = embed_modality(model, self.data, self.modality, self.batch_size, self.dataset)
            truth = torch.tensor([[name in labels[info.sample] for name in classes] for info in items.infos])
            truth = truth.view(len(items.infos), len(classes))
            known = truth.any(1)
            used = int(known.sum())
            if used:
                ranks = class_ranks(items.vectors[known], self._class_vectors(model, classes), truth[known])
                scores = class_scores(ranks, truth[known], items.group[known])
            missing = len(labels) - len(items.select(known).present)
        else:
            missing = len(labels)
        for metric, score in scores.items():
            yield maker.row(
                f"{self.modality}->{self.label}",
                metric,
                score,
                main=metric == METRICS[0],
                emergent=frozenset((self.modality, self.text_modality)) not in moment.trained_pairs,
                n_queries=used,
                n_gallery=len(classes),
                n_missing=missing,
            )

    def _class_vectors(self, model: "Aligner", classes: list[str]) -> Float[Tensor, "classes dim"]:
        names = [self.class_names.get(name, name.replace("_", " ")) for name in classes]
        prompts = [template.replace("{}", name) for name in names for template in self.templates]
        vectors = embed_texts(model, self.text_modality, prompts)[1]
        means = vectors.view(len(classes), len(self.templates), -1).mean(1)
        return torch.nn.functional.normalize(means, dim=1)


def read_labels(data: ShardData, field: str) -> list[set[str]]:
    """The labels of each sample; none where the json or the field is missing.

    Raises:
        ValueError: no sample has the field.
    """
    samples = ShardSet.open(data.shards, data.split)
    labels = []
    for index in range(len(samples) if data.limit is None else min(data.limit, len(samples))):
        try:
            value: Any = samples.read(index).metadata.get(field)
        except (SampleError, ValueError):
            value = None
        found = value if isinstance(value, list) else [value]
        labels.append({label for label in found if isinstance(label, str) and label})
    if not any(labels):
        raise ValueError(f"{data.shards}: no sample of the split {data.split!r} has a label {field!r} in its json")
    return labels


def class_ranks(
    items: Float[Tensor, "items dim"], classes: Float[Tensor, "classes dim"], truth: Bool[Tensor, "items classes"]
) -> Int[Tensor, " items"]:
    """Place of each item's best right class, from 1; a wrong class that scores as high stands before it."""
    scores = items @ classes.T
    best = scores.masked_fill(~truth, -torch.inf).amax(1, keepdim=True)
    return 1 + ((scores >= best - TIE_TOLERANCE) & ~truth).sum(1)


def class_scores(
    ranks: Int[Tensor, " items"], truth: Bool[Tensor, "items classes"], cluster: Int[Tensor, " items"]
) -> dict[str, Score]:
    """Scores over items that have at least one label each; the mean over classes is over those that occur."""
    n_labels, n_classes = truth.sum(1), truth.shape[1]
    hits = torch.stack([(ranks <= place).double() for place in PLACES], 1)
    bounds = mean_intervals(hits, cluster).tolist()
    levels = [float(chance.recall_at_k(n_labels, n_classes, place).mean()) for place in PLACES]
    scores = {
        name: Score(float(column.mean()), low, high, level)
        for name, column, (low, high), level in zip(METRICS, hits.T, bounds, levels, strict=False)
    }
    occurring = truth[:, truth.any(0)].double()
    per_class = (occurring.T @ hits[:, 0]) / occurring.sum(0)
    guess = (occurring.T @ chance.recall_at_k(n_labels, n_classes, 1)) / occurring.sum(0)
    return scores | {METRICS[2]: Score(float(per_class.mean()), chance=float(guess.mean()))}
