"""Drift of a tower that is changed on purpose, and translations that are placed on purpose."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmalign.data.config import ShardData
from mmalign.encoders.text_bytes import TextBytes
from mmalign.evaluation.base import Moment
from mmalign.evaluation.drift import TowerDrift, TranslationRetrieval
from mmalign.evaluation.run import evaluate_all
from mmalign.evaluation.table import Row
from mmalign.model import Aligner
from tests.evaluation.conftest import DIM, read_out_model


def at(stage_index: int) -> Moment:
    return Moment("run", f"stage-{stage_index}", stage_index, 0, 0, frozenset())


def values(rows: list[Row]) -> dict[str, float]:
    return {row.metric: row.value for row in rows}


def byte_model() -> Aligner:
    return Aligner({"text": TextBytes(width=16, depth=1, heads=2)}, dim=8)


def test_no_change_is_exactly_none_and_change_is_seen() -> None:
    model, drift = byte_model(), TowerDrift()
    start = evaluate_all(model, {"drift": drift}, at(0))
    assert values(start) == pytest.approx(dict.fromkeys(values(start), 1.0), abs=1e-9)
    assert [row.metric for row in start if row.main] == ["neighbour_overlap"]
    assert len(start[0].text_hash) == 64
    with torch.no_grad():
        model.projections["text"].linear.weight.mul_(-3)  # not part of the tower
    assert values(evaluate_all(model, {"drift": drift}, at(1))) == values(start)
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    after = values(evaluate_all(model, {"drift": drift}, at(2)))
    assert all(after[name] < 0.95 for name in after), after


def test_reference_survives_a_restart() -> None:
    model, first = byte_model(), TowerDrift()
    evaluate_all(model, {"drift": first}, at(0))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        model.encoders["text"].embedding.weight.add_(0.1 * torch.randn(258, 16))
    second = TowerDrift()
    second.load_state_dict(torch.load(file, weights_only=True))
    expected = evaluate_all(model, {"drift": first}, at(1))
    assert evaluate_all(model, {"drift": second}, at(1)) == expected
    assert expected[0].value < 1


def test_without_a_reference_there_is_no_drift_to_tell() -> None:
    rows = evaluate_all(byte_model(), {"drift": TowerDrift()}, at(1))
    assert all(math.isnan(row.value) for row in rows)
    other = TowerDrift()
    other.load_state_dict({"reference": torch.zeros(399, 16), "text_hash": "of other sentences"})
    with pytest.raises(ValueError, match="not those of the reference"):
        evaluate_all(byte_model(), {"drift": other}, at(1))


def test_translations_that_are_where_they_should_be(make_data: Callable[..., ShardData], moment: Moment) -> None:
    generator = np.random.default_rng(0)
    base = generator.standard_normal((30, DIM))
    samples = [{"t.en": base[i], "t.fr": base[i] * 2, "t.de": base[(i + 1) % 30], "t.xx": base[0]} for i in range(30)]
    for sample in samples[3:]:
        del sample["t.xx"]
    data = make_data(samples, modalities={"text": "t.*.npy"})
    model = read_out_model(["text"])
    torch.nn.init.zeros_(model.projections["text"].linear.weight)  # the joint space has collapsed, the tower has not
    torch.nn.init.ones_(model.projections["text"].linear.bias)
    rows = evaluate_all(model, {"translation": TranslationRetrieval(data)}, moment)
    found = {(row.direction, row.metric): row for row in rows}
    assert found["text.pooled[fr]->text.pooled[en]", "R@1"].value == 1.0
    assert found["text.pooled[en]->text.pooled[de]", "R@1"].value == 0.0
    assert found["text[fr]->text[en]", "R@1"].value == 0.0
    main = found["text.pooled[*]->text.pooled[en]", "R@1"]
    assert main.main
    assert main.value == 0.5
    assert main.chance == pytest.approx(1 / 30)
    assert not any("xx" in row.direction for row in rows)
    asked = evaluate_all(model, {"t": TranslationRetrieval(data, languages=["xx"])}, moment)
    missing = next(row for row in asked if row.direction == "text.pooled[xx]->text.pooled[en]")
    assert (missing.n_queries, missing.n_missing) == (3, 27)
    assert (
        sum(row.main for row in evaluate_all(read_out_model(["image"]), {"t": TranslationRetrieval(data)}, moment)) == 1
    )
