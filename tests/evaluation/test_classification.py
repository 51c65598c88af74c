"""Prompts as classifiers, with vectors that are chosen so that the answer is known."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.batch import Tokens
from mmalign.data.config import ShardData
from mmalign.encoders.base import Axis, Encoder, Preprocess
from mmalign.evaluation.base import Moment
from mmalign.evaluation.classification import ZeroShotClassification, class_ranks
from mmalign.evaluation.run import evaluate_all
from tests.evaluation.conftest import DIM, read_out_model

WORDS = ["cat", "dog", "red fox", "hen", "cow", "pig", "owl"]


@dataclass(frozen=True)
class WordPreprocess(Preprocess):
    """A sentence becomes the one-hot vector of the word in it."""

    kind: ClassVar[str] = "text"
    variable_length: ClassVar[bool] = False

    def prepare(self, value: str, generator: np.random.Generator | None) -> Tensor:
        row = torch.zeros(DIM)
        row[next(i for i, word in enumerate(WORDS) if word in value)] = 1.0
        return row


class WordTower(Encoder):
    def __init__(self) -> None:
        super().__init__(WordPreprocess(), DIM, Axis("tokens"))

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens.mean_pooled(values.unsqueeze(1))


def model_of_words():
    model = read_out_model(["image"])
    model.encoders["text"] = WordTower()
    model.projections["text"] = model.projections["image"]
    return model


def picture(first: int, second: int) -> np.ndarray:
    vector = np.zeros(DIM)
    vector[first], vector[second] = 1.0, 0.5
    return vector


@pytest.fixture
def data(make_data: Callable[..., ShardData]) -> ShardData:
    samples = [{"png": picture(*pair)} for pair in [(0, 1), (0, 1), (0, 2), (1, 0), (3, 2), (5, 6)]]
    labels = [{"kind": "cat"}, {"kind": "cat"}, {"kind": "cat"}, {"kind": "cat"}, {"kind": ["red_fox", "hen"]}, {}]
    return make_data(samples, modalities={"image": "png.npy"}, metadata=labels)


def test_accuracy_by_hand(data: ShardData, moment: Moment) -> None:
    classes = [word.replace(" ", "_") for word in WORDS]
    rows = evaluate_all(model_of_words(), {"c": ZeroShotClassification(data, "kind", classes=classes)}, moment)
    values = {row.metric: row for row in rows}
    assert values["accuracy"].value == pytest.approx(4 / 5)  # three cats, and the hen that is also a fox
    assert values["accuracy@5"].value == 1.0
    assert values["mean_class_accuracy"].value == pytest.approx((3 / 4 + 1 + 1) / 3)
    assert values["accuracy"].chance == pytest.approx((4 / 7 + 2 / 7) / 5)
    row = values["accuracy"]
    assert (row.direction, row.n_queries, row.n_gallery, row.n_missing, row.main) == ("image->kind", 5, 7, 1, True)


def test_classes_come_from_the_data(data: ShardData, moment: Moment) -> None:
    rows = evaluate_all(model_of_words(), {"c": ZeroShotClassification(data, "kind", ["one {} here"])}, moment)
    assert rows[0].n_gallery == 3


def test_collapsed_model_is_never_right() -> None:
    truth = torch.eye(4, dtype=torch.bool)
    assert class_ranks(torch.ones(4, 8) / 8**0.5, torch.ones(4, 8) / 8**0.5, truth).tolist() == [4] * 4


def test_what_cannot_be_measured(data: ShardData, moment: Moment) -> None:
    rows = evaluate_all(read_out_model(["image"]), {"c": ZeroShotClassification(data, "kind")}, moment)
    assert all(math.isnan(row.value) and row.n_missing == 6 for row in rows)
    with pytest.raises(ValueError, match="no sample of the split 'test' has a label 'colour'"):
        evaluate_all(model_of_words(), {"c": ZeroShotClassification(data, "colour")}, moment)
    with pytest.raises(ValueError, match="for the class"):
        ZeroShotClassification(data, "kind", ["a picture"])
