"""The evaluator: which items meet which, what is left out, and what stands in the rows."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmalign.data.config import ShardData
from mmalign.evaluation.base import Moment
from mmalign.evaluation.retrieval import Retrieval
from mmalign.evaluation.run import evaluate_all
from mmalign.evaluation.table import Row
from tests.evaluation.conftest import DIM, read_out_model

MakeData = Callable[..., ShardData]
MODALITIES = {"image": "png.npy", "text": "captions.*.npy", "audio": "flac.npy"}


def noise(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM))


def find(rows: list[Row], direction: str, metric: str = "R@1") -> Row:
    return next(row for row in rows if row.direction == direction and row.metric == metric)


@pytest.fixture
def samples() -> list[dict[str, np.ndarray]]:
    """40 items; the English captions are right, the French ones wrong by one; every fourth has a sound."""
    base, other = noise(40, 0), noise(40, 1)
    found = []
    for i in range(40):
        members = {"png": base[i], "captions.en": base[i] + 0.01 * other[i], "captions.fr": base[(i + 1) % 40]}
        if i % 4 == 0:
            members["flac"] = base[i] + 0.02 * other[i]
        found.append(members)
    return found


def test_rows_by_direction_and_language(make_data: MakeData, samples: list, moment: Moment) -> None:
    data = make_data(samples, modalities=MODALITIES)
    rows = evaluate_all(read_out_model(list(MODALITIES)), {"stamps": Retrieval(data, dataset="d")}, moment)
    assert find(rows, "image->text[en]").value == 1.0
    assert find(rows, "image->text[fr]").value == 0.0
    assert find(rows, "text[en]->image").value == 1.0
    assert find(rows, "text->image").value == 0.5  # English ones found, French ones not
    assert find(rows, "image->text").n_gallery == 80
    assert find(rows, "image->text").n_queries == 40
    english = find(rows, "image->text[en]")
    assert (english.n_gallery, english.n_missing, english.chance) == (40, 0, pytest.approx(1 / 40))
    sound = find(rows, "audio->text[en]")
    assert (sound.n_queries, sound.n_gallery, sound.n_missing, sound.value) == (10, 40, 30, 1.0)
    # the pictures of items without a sound have nothing to find, and do not count
    assert find(rows, "image->audio").n_queries == 10
    assert not find(rows, "text->image").emergent
    assert find(rows, "audio->image").emergent
    assert [(row.direction, row.metric) for row in rows if row.main] == [("image->text", "R@1")]
    assert {row.column for row in rows} == {"stamps"}
    assert not find(rows, "image->text", "median_rank").higher_is_better


def test_items_of_one_group_are_relevant_for_each_other(make_data: MakeData, moment: Moment) -> None:
    vectors = noise(3, 0)
    samples = [{"png": vectors[i], "txt": vectors[j]} for i, j in [(0, 1), (1, 0), (2, 2)]]
    model = read_out_model(["image", "text"])
    modalities = {"image": "png.npy", "text": "txt.npy"}
    apart = evaluate_all(model, {"c": Retrieval(make_data(samples, None, modalities))}, moment)
    assert find(apart, "image->text").value == pytest.approx(1 / 3)
    data = make_data(samples, ["same", "same", "other"], modalities)
    together = evaluate_all(model, {"c": Retrieval(data)}, moment)
    assert find(together, "image->text").value == 1.0
    assert find(together, "image->text", "mAP@10").value <= 1.0


def test_fusion_never_sees_what_it_is_to_find(make_data: MakeData, moment: Moment) -> None:
    """Pictures and sounds are noise: if the fused query held the text itself, it would find it."""
    text = noise(60, 1)
    samples = [{"png": noise(60, 2)[i], "flac": noise(60, 3)[i], "txt": 50 * text[i]} for i in range(60)]
    modalities = {"image": "png.npy", "audio": "flac.npy", "text": "txt.npy"}
    data = make_data(samples, modalities=modalities)
    rows = evaluate_all(read_out_model(list(modalities), fusion=True), {"c": Retrieval(data)}, moment)
    for direction in ("fused->text", "text->fused", "image+audio->text"):
        assert find(rows, direction, "R@5").value < 0.3, direction
    assert {"image+text->audio", "audio+text->image"} <= {row.direction for row in rows}


def test_fusion_of_what_is_there(make_data: MakeData, moment: Moment, samples: list) -> None:
    data = make_data(samples, modalities=MODALITIES)
    rows = evaluate_all(read_out_model(list(MODALITIES), fusion=True), {"c": Retrieval(data)}, moment)
    anything, both = find(rows, "fused->text[en]"), find(rows, "image+audio->text[en]")
    assert (anything.n_queries, anything.n_missing, anything.value) == (40, 0, 1.0)
    assert (both.n_queries, both.n_missing, both.value) == (10, 30, 1.0)


def test_what_cannot_be_measured_is_nan(make_data: MakeData, samples: list, moment: Moment) -> None:
    data = make_data(samples, modalities=MODALITIES)
    model = read_out_model(["image", "text"])
    rows = evaluate_all(model, {"c": Retrieval(data, main_direction="audio->text")}, moment)
    missing = find(rows, "audio->text")
    assert missing.main
    assert math.isnan(missing.value)
    assert missing.n_missing == 40
    assert find(rows, "image->text").n_queries == 40


def test_gallery_limit_and_main_choice(make_data: MakeData, samples: list, moment: Moment) -> None:
    data = make_data(samples, modalities=MODALITIES)
    evaluator = Retrieval(
        data, gallery=24, main_direction="text[fr]->image", main_metric="median_rank", directions=["text->image"]
    )
    rows = evaluate_all(read_out_model(list(MODALITIES)), {"c": evaluator}, moment)
    assert find(rows, "text[en]->image").n_gallery == 24
    assert [(row.direction, row.metric) for row in rows if row.main] == [("text[fr]->image", "median_rank")]
    wrong = Retrieval(data, main_direction="text[xx]->image")
    with pytest.raises(ValueError, match=r"there is no main score text\[xx\]->image R@1") as error:
        evaluate_all(read_out_model(list(MODALITIES)), {"stamps": wrong}, moment)
    assert "evaluation.stamps" in error.value.__notes__[0]
    with pytest.raises(ValueError, match="'image-text' is no direction"):
        Retrieval(data, directions=["image-text"])


def test_result_does_not_depend_on_batches(make_data: MakeData, samples: list, moment: Moment) -> None:
    data = make_data(samples, modalities=MODALITIES)
    model = read_out_model(list(MODALITIES), fusion=True)
    one = evaluate_all(model, {"c": Retrieval(data, batch_size=1)}, moment)
    many = evaluate_all(model, {"c": Retrieval(data, batch_size=64, workers=1)}, moment)
    assert str(one) == str(many)  # compares NaN as equal


def test_examples_name_what_was_found(make_data: MakeData, samples: list, moment: Moment) -> None:
    evaluator = Retrieval(make_data(samples, modalities=MODALITIES), dataset="d", directions=["text->image"])
    evaluate_all(read_out_model(list(MODALITIES)), {"c": evaluator}, moment)
    best = next(example for example in evaluator.examples if example["rank"] == 1)
    assert best["query"].startswith("d/s00")
    assert best["member"] == "captions.en.npy"
    assert [r["score"] for r in best["results"]] == sorted((r["score"] for r in best["results"]), reverse=True)
    assert len(best["results"]) == 5
    own = [r for r in best["results"] if r["relevant"]]
    assert [(r["key"], r["member"]) for r in own] == [(best["query"], "png.npy")]
    assert any(example["rank"] > 10 for example in evaluator.examples)
    assert set(evaluator.diagnostics["points"]) == {"image", "text", "audio"}


def test_model_is_left_as_it_was(make_data: MakeData, samples: list, moment: Moment) -> None:
    model = read_out_model(list(MODALITIES)).train()
    model.encoders["image"].eval()
    before = torch.random.get_rng_state()
    evaluate_all(model, {"c": Retrieval(make_data(samples, modalities=MODALITIES))}, moment)
    assert model.training
    assert model.encoders["text"].training
    assert not model.encoders["image"].training
    assert torch.equal(before, torch.random.get_rng_state())
