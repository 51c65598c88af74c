"""What a person looks at after a run: examples of retrieval with pictures and sounds, and the modality gap."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from mmalign.data.config import ShardData
from mmalign.data.sample import DEFAULT_MEMBERS, RawSample
from mmalign.data.scan import key_hash
from mmalign.data.shardset import ShardSet
from mmalign.evaluation.retrieval import Retrieval
from mmalign.report.examples import (
    AUDIO_TYPES,
    IMAGE_TYPES,
    Example,
    Item,
    Result,
    read_examples,
    save_media,
    write_examples,
)
from mmalign.training.experiment import Experiment
from mmalign.training.run_files import write_json

EXAMPLES_PER_COLUMN = 36


def save_examples(directory: Path, experiment: Experiment, stage: str, columns: Collection[str]) -> None:
    """The examples that retrieval columns found in their last evaluation -> RUN/examples.

    Args:
        columns: those that were evaluated; of the others the examples that are there stay.
    """
    found: list[Example] = []
    before = read_examples(directory)
    for column, evaluator in experiment.evaluation.items():
        if column not in columns:
            found += [example for example in before if example.column == column]
            continue
        if not isinstance(evaluator, Retrieval):
            continue
        shelf = _Shelf(directory, evaluator.data)
        for example in evaluator.examples[:EXAMPLES_PER_COLUMN]:
            results = [
                Result(shelf.item(result["key"], result["member"]), result["score"], result["relevant"])
                for result in example["results"]
            ]
            query = shelf.item(example["query"], example["member"])
            found.append(Example(column, example["direction"], query, example["rank"], results, stage))
    write_examples(directory, found)


def save_diagnostics(directory: Path, experiment: Experiment, stage: str, columns: Collection[str]) -> None:
    """The modality gap of the first retrieval column -> RUN/diagnostics.json; `columns` as above."""
    path = directory / "diagnostics.json"
    for column, evaluator in experiment.evaluation.items():
        if not isinstance(evaluator, Retrieval):
            continue
        if column not in columns and path.exists():
            return
        if column in columns and evaluator.diagnostics.get("points"):
            write_json(path, {"modality_gap": {"stage": stage, **evaluator.diagnostics}})
            return


class _Shelf:
    """Items by key, with the members that a person can see and hear, saved once each."""

    def __init__(self, directory: Path, data: ShardData) -> None:
        self.directory = directory
        self.samples = ShardSet.open(data.shards, data.split)
        self.patterns = list((data.modalities or {}).values()) or list(DEFAULT_MEMBERS.values())
        self.places = {int(key): index for index, key in enumerate(np.asarray(self.samples.keys))}
        self.items: dict[tuple[str, str], Item] = {}

    def item(self, key: str, member: str) -> Item:
        """The sample "DATASET/KEY" as `member` of it stood for it: this caption, this recording."""
        if (key, member) not in self.items:
            sample = self.samples.read(self.places[key_hash(key.partition("/")[2])])
            self.items[key, member] = self._make(key, member, sample)
        return self.items[key, member]

    def _make(self, key: str, member: str, sample: RawSample) -> Item:
        variants = [variant for pattern in self.patterns for variant in sample.variants(pattern)]
        variants.sort(key=lambda variant: variant.name != member)  # the one that took part comes first
        parts = {"text": "", "image": "", "audio": ""}
        for variant in variants:
            extension = variant.name.rpartition(".")[2].lower()
            if extension in IMAGE_TYPES and not parts["image"]:
                parts["image"] = save_media(self.directory, key, extension, variant.data)
            elif extension in AUDIO_TYPES and not parts["audio"]:
                parts["audio"] = save_media(self.directory, f"{key}/{variant.name}", extension, variant.data)
            elif (extension == "txt" or variant.name.startswith("captions[")) and not parts["text"]:
                parts["text"] = variant.data.decode("utf-8", "replace")
        return Item(key, **parts)
