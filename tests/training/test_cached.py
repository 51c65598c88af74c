"""Which towers' outputs a run keeps, and that training and evaluation keep them once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.data.config import Reading, ShardData
from mmalign.data.shards import build
from mmalign.data.sources.scenes import Scenes
from mmalign.data.workers import workers_per_process
from mmalign.evaluation.embed import embed_modality
from mmalign.training.config import build_experiment, check_config
from mmalign.training.curriculum import Curriculum
from mmalign.training.stage_data import stage_features
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
    assert run.reading.cached == {"image"}


def test_what_a_method_freezes_counts_and_what_one_stage_trains_is_not_cached_in_evaluations(tmp_path: Path) -> None:
    assert curriculum(tmp_path, retention={"frozen": FROZEN}).reading.cached == {"image"}
    once = curriculum(tmp_path, stages__audio_text__trainable={"encoder.image": "none"})
    assert once.reading.cached == set()
    in_one_stage = {"retention": {"frozen": FROZEN}, "stages__image_text__retention": {}}
    assert curriculum(tmp_path, **in_one_stage).reading.cached == set()


def test_a_cache_that_could_never_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cached: every stage trains the image tower"):
        curriculum(tmp_path)
    with pytest.raises(ValueError, match="cached: every stage trains the image tower"):
        curriculum(tmp_path, stages__image_text__trainable={"encoder.image": 1})
    with pytest.raises(ValueError, match="cached: 'smell' is none of the modalities"):
        curriculum(tmp_path, cached=["smell"])
    with pytest.raises(ValueError, match=r"stages.audio_text.trainable: encoder.image has \d layers, not -1"):
        curriculum(tmp_path, stages__audio_text__trainable={"encoder.image": -1})


def test_features_of_a_tower_in_double_precision(tmp_path: Path) -> None:
    build(Scenes(train=24, val=1, test=1, test_compositional=1, image_size=32, workers=1), tmp_path / "scenes")
    data = ShardData(str(tmp_path / "scenes"), modalities={"image": "png", "text": "captions[*]"})
    run = curriculum(tmp_path, retention={"frozen": FROZEN}, runtime__precision="64-true")
    model = run.experiment.model.eval()
    cached = embed_modality(model, data, "image").vectors
    model.reading = Reading()
    torch.testing.assert_close(cached, embed_modality(model, data, "image").vectors, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch_size", [7, 100])
def test_training_and_evaluation_share_a_cache(tmp_path: Path, batch_size: int) -> None:
    build(Scenes(train=24, val=1, test=1, test_compositional=1, image_size=32, workers=1), tmp_path / "scenes")
    data = ShardData(str(tmp_path / "scenes"), modalities={"image": "png", "text": "captions[*]"})
    run = curriculum(tmp_path, retention={"frozen": FROZEN}, limits={"max_pixels": 5000})
    model = run.experiment.model.eval()
    cached = embed_modality(model, data, "image", batch_size)
    features = stage_features(run.plan(1), model, ["image"], run.reading, {"scenes": data})
    (cache,) = (tmp_path / "scenes" / "features").glob("*/cache.json")
    assert features["scenes"]["image"].digest == cache.parent.name
    assert json.loads(cache.read_text())["limits"]["max_pixels"] == 5000
    model.reading = Reading()
    plain = embed_modality(model, data, "image")
    assert len(plain.infos) == 24
    assert cached.infos == plain.infos
    torch.testing.assert_close(cached.vectors, plain.vectors, atol=1e-5, rtol=0)


def test_limits_hold_in_evaluations(tmp_path: Path) -> None:
    build(Scenes(train=4, val=1, test=1, test_compositional=1, image_size=32, workers=1), tmp_path / "scenes")
    data = ShardData(str(tmp_path / "scenes"), modalities={"image": "png"})
    model = curriculum(tmp_path, cached=[], limits={"max_pixels": 1000}).experiment.model.eval()
    with pytest.warns(UserWarning, match="4 image items cannot be used: .* the limit is 1000"):
        assert embed_modality(model, data, "image").infos == []


def test_evaluations_take_the_workers_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(Scenes(train=4, val=1, test=1, test_compositional=1, image_size=32, workers=1), tmp_path / "scenes")
    data = ShardData(str(tmp_path / "scenes"), modalities={"image": "png"})
    model = curriculum(tmp_path, cached=[], runtime__workers=3).experiment.model.eval()
    taken: list[int] = []
    monkeypatch.setattr("mmalign.data.variants.ordered", lambda blocks, chosen, workers: taken.append(workers) or [])
    embed_modality(model, data, "image")
    monkeypatch.setattr("mmalign.data.workers._SAMPLES_PER_WORKER", 2)
    embed_modality(model, data, "image")
    embed_modality(model, data, "image", workers=1)
    assert taken == [0, 2, 1]


def test_workers_suit_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes, workers in ((1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, 8), (16, 4, 3), (8, 8, 1)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert workers_per_process(processes) == workers
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    assert curriculum(tmp_path, cached=[], runtime={"devices": 2}).reading.workers == 5
    assert curriculum(tmp_path, cached=[], runtime={"workers": 0}).reading.workers == 0
