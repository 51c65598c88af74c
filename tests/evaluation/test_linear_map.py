"""The linear control: equal to the normal equations, finds a linear relation, blind to shuffled pairs."""

import json
import math

import numpy as np
import pytest
import torch

from mmalign.data.config import ShardData
from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.evaluation.linear_map import LinearMap
from mmalign.evaluation.retrieval import Retrieval
from mmalign.evaluation.ridge import Spectrum, choose_ridge
from mmalign.model import Aligner
from mmalign.training.least_squares import fit_least_squares
from tests.evaluation.conftest import DIM, npy, read_out_model

MODALITIES = {"image": "image.npy", "text": "text.npy|text.*.npy"}


@pytest.fixture
def related(tmp_path):
    """Shards whose texts are a linear function of the pictures, and noise; `shuffled` breaks the training pairs."""

    def make(noise: float, shuffled: bool = False, captions: int = 1) -> tuple[ShardData, ShardData]:
        random = np.random.default_rng(0)
        relation = random.standard_normal((DIM, DIM))
        directory = tmp_path / f"{noise}-{shuffled}-{captions}"
        for split, count in (("train", 200), ("test", 60)):
            pictures = random.standard_normal((count, DIM)) + 3.0
            texts = (pictures - 3.0) @ relation + noise * random.standard_normal((count, DIM)) + 20.0
            if shuffled and split == "train":
                texts = np.roll(texts, 7, axis=0)
            raw = []
            for i in range(count):
                members = {"image.npy": npy(pictures[i])}
                members |= {f"text.{c}.npy": npy(texts[i] + 0.01 * c) for c in range(captions)}
                raw.append(RawSample(f"{split}{i}", members | {"json": json.dumps({"group": f"{split}{i}"}).encode()}))
            write_shards(directory, split, raw)
        build_index(directory)
        return ShardData(str(directory), "train", MODALITIES), ShardData(str(directory), "test", MODALITIES)

    return make


def scores(evaluator: LinearMap, moment) -> dict[tuple[str, str], float]:
    rows = list(evaluator.evaluate(read_out_model(["image", "text"]), moment, "linear"))
    assert [(row.direction, row.metric) for row in rows if row.main] == [("image->text", "R@1")]
    return {(row.direction, row.metric): row.value for row in rows}


def test_a_linear_relation_is_found_in_both_directions(related, moment):
    train, test = related(noise=0.1)
    found = scores(LinearMap(test, [train]), moment)
    assert found["image->text", "R@1"] > 0.95
    assert found["text->image", "R@1"] > 0.95


def test_a_models_computed_heads_are_the_map(related, moment):
    train, test = related(noise=4.0, captions=2)
    expected = scores(LinearMap(test, [train]), moment)
    plain = read_out_model(["image", "text"])
    model = Aligner(dict(plain.encoders), 2 * DIM, projection_heads=2, least_squares=("image", "text"))
    for projection in model.projections.values():
        torch.nn.init.zeros_(projection[0].linear.weight)  # only the computed heads say anything
        torch.nn.init.zeros_(projection[0].linear.bias)
    retrieval = Retrieval(test)
    before = next(row.value for row in retrieval.evaluate(model, moment, "linear") if row.main)
    fit_least_squares(model, [train])
    rows = list(retrieval.evaluate(model, moment, "linear"))
    found = {(row.direction, row.metric): row.value for row in rows}
    assert before < 0.2 < expected["image->text", "R@1"] < 0.95
    for key in (("image->text", "R@1"), ("text->image", "R@1"), ("text->image", "mAP@10")):
        assert found[key] == pytest.approx(expected[key])
    with pytest.raises(ValueError, match="no computed heads"):
        fit_least_squares(plain, [train])


def test_shuffled_pairs_stay_near_chance(related, moment):
    train, test = related(noise=0.1, shuffled=True)
    assert scores(LinearMap(test, [train]), moment)["image->text", "R@10"] < 0.35  # chance is 10 of 60


def test_several_captions_and_data_sets_make_one_fit(related, moment):
    train, test = related(noise=0.1, captions=3)
    half = ShardData(train.shards, "train", MODALITIES, limit=100)
    rows = list(LinearMap(test, [half, train]).evaluate(read_out_model(["image", "text"]), moment, "linear"))
    assert {(row.n_queries, row.n_gallery, row.n_missing) for row in rows if row.direction == "image->text"} == {
        (60, 180, 0)
    }
    assert next(row.value for row in rows if row.main) > 0.95


def test_equals_the_normal_equations_of_ridge_regression():
    sources, targets = torch.randn(50, 8) + 2, torch.randn(50, 5) - 1
    ridge = 0.3
    x = (sources - sources.mean(0)).double()
    y = torch.nn.functional.normalize(targets.double(), dim=1)
    y = y - y.mean(0)
    penalty = ridge * x.pow(2).mean() * len(x) * torch.eye(8)
    expected = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    torch.testing.assert_close(Spectrum.of(sources, targets).solve(ridge).weights, expected)


def test_cross_validation_shrinks_more_where_there_is_more_noise():
    relation = torch.randn(40, 12)
    sources, groups = torch.randn(90, 40), torch.arange(90)
    ridges = [1e-3, 1e-2, 0.1, 1.0, 10.0]
    clean, noisy = (sources @ relation + noise * torch.randn(90, 12) for noise in (0.0, 12.0))
    assert choose_ridge(sources, clean, groups, ridges, 5) < choose_ridge(sources, noisy, groups, ridges, 5)


def test_nothing_can_be_said_without_the_modality(related, moment):
    train, test = related(noise=0.1)
    rows = list(LinearMap(test, [train]).evaluate(read_out_model(["image"]), moment, "linear"))
    assert len(rows) == 10
    assert all(math.isnan(row.value) for row in rows)
    assert sum(row.main for row in rows) == 1


@pytest.mark.parametrize("wrong", [{"train": []}, {"ridges": [0.0]}, {"ridges": []}, {"folds": 1}])
def test_senseless_settings_are_refused(wrong):
    data = ShardData("somewhere", "test")
    with pytest.raises(ValueError, match="LinearMap"):
        LinearMap(data, **{"train": [data], **wrong})
