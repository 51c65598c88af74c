"""Which towers' outputs a run keeps, and that training and evaluation keep them once."""

from pathlib import Path
from typing import Any

import pytest

from mmalign.training.config import build_experiment, check_config
from mmalign.training.curriculum import Curriculum
from mmalign.training.yaml_config import read_config

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
FROZEN = {"class_path": "mmalign.retention.Frozen", "init_args": {"components": ["encoder.image"]}}
QUICK = {
    "stages.image_text.steps": 2,
    "stages.image_text.batch_size": 8,
    "stages.image_text.optimization.warmup_steps": 1,
    "stages.audio_text.steps": 2,
    "stages.audio_text.batch_size": 8,
    "stages.audio_text.optimization.warmup_steps": 1,
    "runtime": {"workers": 0, "threads": 1, "progress_bar": False},
    "logging.mode": "disabled",
    "cached": ["image"],
}


def config(**changes: Any) -> dict[str, Any]:
    return check_config(read_config(DEBUG, QUICK | {key.replace("__", "."): value for key, value in changes.items()}))


def curriculum(folder: Path, **changes: Any) -> Curriculum:
    checked = config(**changes)
    return Curriculum(build_experiment(checked), checked, folder)


@pytest.mark.parametrize("nothing", ["none", 0])
def test_a_tower_that_no_stage_trains_is_cached_everywhere(tmp_path: Path, nothing: Any) -> None:
    frozen = {"encoder.image": nothing}
    run = curriculum(tmp_path, stages__image_text__trainable=frozen, stages__audio_text__trainable=frozen)
    assert run.experiment.model.cached == {"image"}


def test_what_a_method_freezes_counts_and_what_one_stage_trains_is_not_cached_in_evaluations(tmp_path: Path) -> None:
    assert curriculum(tmp_path, retention={"frozen": FROZEN}).experiment.model.cached == {"image"}
    once = curriculum(tmp_path, stages__audio_text__trainable={"encoder.image": "none"})
    assert once.experiment.model.cached == set()
    in_one_stage = {"retention": {"frozen": FROZEN}, "stages__image_text__retention": {}}
    assert curriculum(tmp_path, **in_one_stage).experiment.model.cached == set()


def test_a_cache_that_could_never_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cached: every stage trains the image tower"):
        curriculum(tmp_path)
    with pytest.raises(ValueError, match="cached: every stage trains the image tower"):
        curriculum(tmp_path, stages__image_text__trainable={"encoder.image": 1})
    with pytest.raises(ValueError, match="cached: 'smell' is none of the modalities"):
        curriculum(tmp_path, cached=["smell"])
    with pytest.raises(ValueError, match=r"stages.audio_text.trainable: encoder.image has \d layers, not -1"):
        curriculum(tmp_path, stages__audio_text__trainable={"encoder.image": -1})
