"""A stage trains what its losses and methods reach, and nothing else."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from mmalign.data.config import ShardData
from mmalign.encoders import ImageTimm
from mmalign.losses.base import Loss
from mmalign.model import Aligner
from mmalign.retention import DER, EMA, EWC, ZSCL, LwF, Replay, Retention, StagePlan, TextReplay, TowerDistillation
from mmalign.retention.policies import ENTRY
from mmalign.training.config import build_part, check_config
from mmalign.training.experiment import Runtime, Stage
from mmalign.training.module import AlignmentModule
from mmalign.training.trainable import parameter_counts, warn_of_batch_norm
from mmalign.training.yaml_config import read_config

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
TEXT = ShardData("text", modalities={"text": "txt"})
TOWERS_OF_PAIR = {"encoder.image", "projection.image", "encoder.text", "projection.text"}


class Pulling(Retention):
    """Says nothing of what its penalty moves."""

    def penalty(self, *_):
        return {}


class Stored(DER):
    """Has the vectors of an earlier stage's sounds."""

    def prepare(self, plan, model):
        self.replay.memory.pool.add(np.zeros(1, ENTRY), {"audio": np.zeros((1, 2))})


@pytest.fixture(scope="module")
def parts():
    config = check_config(read_config(DEBUG, {}))
    return build_part(config["model"], Aligner), build_part(config["losses"], dict[str, Loss])


@pytest.mark.parametrize(
    ("losses", "methods", "more"),
    [
        (["image_text"], [], set()),
        (["image_text"], [EMA(), EWC(), Replay()], set()),
        (["image_text"], [LwF()], {"encoder.audio", "projection.audio"}),
        (["image_text"], [ZSCL()], {"encoder.audio", "projection.audio"}),
        (["image_text"], [TowerDistillation(["audio"])], {"encoder.audio"}),
        (["image_text"], [Stored(Replay())], {"encoder.audio", "projection.audio"}),
        (["image_text"], [Pulling()], {"encoder.audio", "projection.audio", "fusion"}),
        (["fused_text"], [], {"encoder.audio", "projection.audio", "fusion"}),
    ],
    ids=lambda value: "-".join(sorted(v if isinstance(v, str) else type(v).__name__ for v in value)) or "none",
)
def test_what_is_reached_is_trained(parts, losses, methods, more):
    assert trained(*parts, losses, methods) == TOWERS_OF_PAIR | more


def test_next_token_prediction_leaves_the_projection(parts):
    assert trained(*parts, ["language"], []) == {"encoder.text"}
    with_method = trained(*parts, ["audio_text"], [TextReplay(TEXT)])
    assert with_method == {"encoder.audio", "projection.audio", "encoder.text", "projection.text"}


def test_batch_norm_is_warned_of_where_it_is_trained_on_several_ranks(parts):
    options = {"channels": [8, 8, 16, 16], "stem_width": 8}
    tower = ImageTimm("resnet10t", size=32, options=options)
    model = Aligner({"image": tower}, dim=8)
    with pytest.warns(UserWarning, match=r"^encoder\.image: batch norm .* with 2 ranks"):
        warn_of_batch_norm(model, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_batch_norm(parts[0].train(), 2)
        warn_of_batch_norm(model, 1)
        warn_of_batch_norm(model.eval(), 2)  # as frozen towers are


def trained(model, losses, active, methods):
    """Components of a second stage that have trained parameters; the first was on sounds with texts."""
    stage = Stage(data={"scenes": TEXT}, losses=dict.fromkeys(active, 1.0), steps=1, batch_size=2)
    common = {"steps": 1, "batch_size": 2, "data": {}, "trainable": {}, "seed": 0, "directory": Path("nowhere")}
    past = StagePlan(1, "one", losses={"audio_text": 1.0}, pairs={"audio_text": ("audio", "text")}, **common)
    pairs = {name: losses[name].pair for name in active}
    plan = StagePlan(2, "two", losses=dict(stage.losses), pairs=pairs, past=[past], **common)
    for method in methods:
        method.prepare(plan, model)
    AlignmentModule(model, losses, {str(i): method for i, method in enumerate(methods)}, stage, plan, Runtime(), {})
    return {name for name, (count, _) in parameter_counts(model).items() if count}
