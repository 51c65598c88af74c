"""Arms that begin alike begin once, and it makes no difference."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from mmalign.evaluation.table import read_rows
from mmalign.training.compare import Arms, compare_runs, read_arms, shared_stages
from mmalign.training.run import train
from mmalign.training.yaml_config import ConfigError

ROOT = Path(__file__).parents[2]
QUICK = {
    "sources.data/scenes.init_args": {"train": 48, "val": 8, "test": 24, "test_compositional": 8, "workers": 1},
    "stages.pictures.steps": 3,
    "stages.sounds.steps": 3,
    "stages.pictures.batch_size": 16,
    "stages.sounds.batch_size": 16,
    "stages.pictures.optimization.warmup_steps": 1,
    "stages.sounds.optimization.warmup_steps": 1,
    "runtime.workers": 0,
    "runtime.threads": 1,
    "logging.mode": "disabled",
}


def arms(**overrides) -> Arms:
    return read_arms(ROOT / "configs" / "demo.yaml", QUICK | overrides)


def test_what_is_shared():
    configs = arms().configs
    naive, replay = configs["naive", 0], configs["replay", 0]
    assert shared_stages(replay, naive) == 1  # the memory only watches in the first stage
    assert shared_stages(naive, replay) == 0  # what it saw is not in the naive run
    later = arms(**{"stages.sounds.optimization.learning_rate": 0.5}).configs
    assert shared_stages(replay, later["replay", 0]) == 0  # its memory would be empty
    assert shared_stages(replay, later["naive", 0]) == 1
    other = arms(**{"stages.pictures.optimization.learning_rate": 0.5}).configs["naive", 0]
    assert shared_stages(replay, other) == 0
    eager = arms(**{"stages.pictures.retention": None}).configs
    assert shared_stages(eager["replay", 0], eager["replay", 0]) == 0


def test_an_adopted_beginning_equals_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    together = arms(sweep=[0.0, 1.0]).train_missing(tmp_path / "together", jobs=1)
    alone = Arms({key: config for key, config in arms(sweep=[0.0, 1.0]).configs.items() if key[0] == "naive"})
    (naive,) = alone.train_missing(tmp_path / "alone", jobs=1)
    adopted = next(path for path in together if path.parent.name == "naive")
    states = [torch.load(run / "checkpoints" / "stage-02.ckpt", weights_only=True) for run in (adopted, naive)]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    for name, weight in states[0]["state_dict"].items():
        assert torch.equal(weight, states[1]["state_dict"][name]), name
    assert (adopted / "metrics.jsonl").read_text() == (naive / "metrics.jsonl").read_text()
    # the end of the alpha sweep is the run itself, its beginning differs in what was learned
    ends = {alpha: read_rows(naive / "sweep" / f"{alpha}.jsonl") for alpha in ("0.00", "1.00")}
    assert [r.value for r in ends["1.00"]] == [
        r.value for r in read_rows(naive / "metrics.jsonl") if r.stage == "sounds"
    ]
    assert [r.value for r in ends["0.00"]] != [r.value for r in ends["1.00"]]

    # side by side: the page, the figures, and the same in W&B, in the group of the runs
    config = yaml.safe_load((naive / "config.yaml").read_text())
    assert config["logging"]["group"] == "demo"
    (naive / "config.yaml").write_text(yaml.safe_dump(config | {"logging": {"mode": "offline", "group": "demo"}}))
    compare_runs(
        [naive, next(path for path in together if path != adopted)], tmp_path / "out", tmp_path / "results.json"
    )
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "results.json").read_text())["summary"]
    assert (tmp_path / "results.png").stat().st_size > 5_000
    pictures = [str(path) for path in (tmp_path / "out" / "wandb").glob("offline-*/files/media/images/**/*.png")]
    assert sum("forgetting_matrix" in path for path in pictures) == 2
    assert any("stability_plasticity" in path for path in pictures)


def test_a_file_without_arms_is_refused():
    with pytest.raises(ConfigError, match="give `arms`"):
        read_arms(ROOT / "configs" / "debug.yaml", {})


def finished(run: Path, config: dict) -> None:
    (run / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/stage-02.ckpt", "metrics.jsonl", "report.html"):
        (run / name).touch()
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_run_of_another_configuration_is_not_taken_for_one_of_this(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for (arm, seed), config in arms().configs.items():
        finished(tmp_path / arm / f"seed-{seed}", config)
    monkeypatch.setattr("mmalign.training.run.build_missing_data", lambda config: None)
    assert len(arms(**{"logging.mode": "offline", "runtime.threads": 2}).train_missing(tmp_path, jobs=1)) == 2
    with pytest.raises(ConfigError, match=r"naive/seed-0/config\.yaml: .* values of stages\.sounds\.steps; choose"):
        arms(**{"stages.sounds.steps": 4}).train_missing(tmp_path, jobs=1)


def test_a_finished_run_goes_on_for_another_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for (arm, seed), config in arms().configs.items():
        finished(tmp_path / arm / f"seed-{seed}", config)
    monkeypatch.setattr("mmalign.training.run.build_missing_data", lambda config: None)
    begun = []
    monkeypatch.setattr(
        "mmalign.training.compare._Children.run", lambda self, command, **settings: begun.append(command) or 0
    )
    arms().train_missing(tmp_path, jobs=1)
    assert begun == []
    arms(**{"evaluation.image_audio.init_args.gallery": 400}).train_missing(tmp_path, jobs=1)
    assert sorted(command[command.index("--out") + 1] for command in begun) == [
        str(tmp_path / arm / "seed-0") for arm in ("naive", "replay")
    ]
    assert not (tmp_path / "naive" / "seed-0" / "report.html").exists()  # it is not finished until it has a new one


def test_missing_weights_are_said_before_data_are_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    wanted = arms(
        **{"model.init_args.encoders.text": {"class_path": "mmalign.encoders.TextHF", "init_args": {"model": "minilm"}}}
    )
    with pytest.raises(FileNotFoundError, match="run: mmalign assets fetch minilm"):
        wanted.train_missing(tmp_path / "out", jobs=1)
    for origin, said in (("gone", "gone: there is no such run"), (".", "no checkpoint of mmalign here")):
        with pytest.raises(FileNotFoundError, match=f"^initial_checkpoint: .*{said}"):
            train(next(iter(arms(initial_checkpoint=origin).configs.values())), tmp_path / "out")
    assert not Path("data").exists()


def test_trainings_end_with_the_comparison(tmp_path, monkeypatch):
    """A stand-in for the training says its process id, and takes its time to save when it is terminated."""
    standin = (
        "import signal, sys, time, pathlib\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "def save(*_): time.sleep(0.2); (out / 'saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(out / 'begun').touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr("mmalign.training.run.build_missing_data", lambda config: None)
    start = subprocess.Popen

    def standing_in(command, **settings):
        return start([sys.executable, "-c", standin, command[command.index("--out") + 1]], **settings)

    monkeypatch.setattr(subprocess, "Popen", standing_in)
    leader = tmp_path / "replay" / "seed-0"

    def kill_when_begun():
        while not (leader / "begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        threading.Thread(target=kill_when_begun, daemon=True).start()
        with pytest.raises(SystemExit):
            arms().train_missing(tmp_path, jobs=2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (leader / "saved").exists()
    assert not (tmp_path / "naive" / "seed-0").exists()


def test_a_single_seed_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"--seeds=\[7\]"):
        arms(seed=7)
