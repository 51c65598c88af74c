"""Language evaluators with towers whose likelihoods are known."""

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.data.config import ShardData
from mmalign.encoders.text_bytes import TextBytes
from mmalign.evaluation.base import Moment
from mmalign.evaluation.cloze_items import cloze_items
from mmalign.evaluation.language import Cloze, LanguageModeling, MinimalPairs
from mmalign.evaluation.minimal_pairs import minimal_pairs
from mmalign.evaluation.run import evaluate_all
from mmalign.model import Aligner
from tests.evaluation.conftest import DIM, ReadOut, read_out_model

TEXTS = ["a bird sings", "ü", "the horse, and no other animal, runs across the field"]


class KnowsSentences(ReadOut):
    """A language model that finds some sentences likely, and all others unlikely."""

    def __init__(self, likely: set[str]) -> None:
        super().__init__()
        self.likely = likely

    def score_text(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        nats = torch.tensor([1.0 if text in self.likely else 2.0 for text in texts])
        return nats, torch.full((len(texts),), 4), torch.tensor([len(text.encode()) for text in texts])


@pytest.fixture
def text_data(make_data: Callable[..., ShardData]) -> ShardData:
    return make_data([{"png": np.ones(DIM)}] * len(TEXTS), texts=TEXTS)


def test_bits_per_byte_of_a_real_tower_by_hand(text_data: ShardData, moment: Moment) -> None:
    tower = TextBytes(width=16, depth=1, heads=2, max_length=512)
    rows = evaluate_all(Aligner({"text": tower}, dim=8), {"language": LanguageModeling(text_data)}, moment)
    bits, perplexity = rows
    with torch.no_grad():
        tower.eval()
        nats, count = 0.0, 0
        for text in TEXTS:
            ids = torch.tensor([[256, *text.encode()]])
            logits = tower.logits(tower(ids).sequence)[0, :-1].double()
            nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    assert bits.metric == "bits_per_byte"
    assert bits.value == pytest.approx(nats / math.log(2) / count, rel=1e-5)
    assert perplexity.value == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert bits.main
    assert not bits.higher_is_better
    assert bits.ci_low <= bits.value <= bits.ci_high
    assert bits.text_hash == hashlib.sha256("".join(text + "\0" for text in TEXTS).encode()).hexdigest()
    assert bits.chance == 8


def test_minimal_pairs_count_by_phenomenon(moment: Moment) -> None:
    pairs = minimal_pairs()
    likely = {pair.good for pair in pairs if pair.phenomenon in ("agreement", "reflexives")}
    model = Aligner({"text": KnowsSentences(likely)}, dim=8)
    rows = evaluate_all(model, {"pairs": MinimalPairs()}, moment)
    values = {row.split: row.value for row in rows}
    assert values["all"] == pytest.approx(2 / 5)
    assert (values["agreement"], values["word_order"]) == (1.0, 0.0)  # equally likely is not better
    assert [row.split for row in rows if row.main] == ["all"]
    assert rows[0].n_queries == 1200
    few = evaluate_all(model, {"pairs": MinimalPairs(pairs_per_phenomenon=10)}, moment)
    assert few[0].n_queries == 50


def test_cloze_counts_by_table_and_by_length(moment: Moment) -> None:
    likely = {item.sentences[0] for item in cloze_items() if item.table == "capitals"}
    rows = evaluate_all(Aligner({"text": KnowsSentences(likely)}, dim=8), {"cloze": Cloze()}, moment)
    values = {(row.metric, row.split): row.value for row in rows}
    assert values["accuracy", "capitals"] == 1.0
    assert values["accuracy", "days"] == 0.0
    assert 0 < values["accuracy_per_byte", "all"] < 1
    assert [(row.metric, row.split) for row in rows if row.main] == [("accuracy", "all")]


@pytest.mark.parametrize("name", ["text", "other"])
def test_a_tower_without_language_model_is_nan(text_data: ShardData, moment: Moment, name: str) -> None:
    evaluators = {"language": LanguageModeling(text_data), "pairs": MinimalPairs(), "cloze": Cloze()}
    rows = evaluate_all(read_out_model([name]), evaluators, moment)
    assert all(math.isnan(row.value) for row in rows)
    assert sum(row.main for row in rows) == 3
