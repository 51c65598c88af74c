"""A run that is interrupted goes on exactly; see also scripts/crash_test, which does the same with many more kills."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign.data.faults import Fault, report_faults
from mmalign.evaluation.table import read_rows, write_rows
from mmalign.retention import EWC
from mmalign.training.config import check_config
from mmalign.training.run import train
from mmalign.training.yaml_config import ConfigError, read_config

ROOT = Path(__file__).parents[2]
QUICK = {
    "stages.image_text.steps": 6,
    "stages.audio_text.steps": 6,
    "stages.image_text.optimization.warmup_steps": 2,
    "stages.audio_text.optimization.warmup_steps": 2,
    "runtime.checkpoint_every_steps": 4,
    "runtime.workers": 0,
    "runtime.threads": 1,
    "runtime.progress_bar": False,
    "logging.mode": "disabled",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder where debug.yaml's data are built once."""
    folder = tmp_path_factory.mktemp("resume")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def quick(**overrides):
    return check_config(read_config(ROOT / "configs" / "debug.yaml", QUICK | overrides))


def test_kills_leave_no_trace(workplace):
    command = [sys.executable, str(ROOT / "scripts" / "crash_test"), "--kills", "5", "--steps", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout


def test_sigterm_saves_and_exits(workplace):
    out = workplace / "terminated"
    settings = QUICK | {"stages.image_text.steps": 2000, "runtime.checkpoint_every_steps": 5000}
    overrides = [
        f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
    ]
    command = [sys.executable, "-m", "mmalign", "train", "--config", str(ROOT / "configs" / "debug.yaml")]
    process = subprocess.Popen([*command, "--out", str(out), *overrides])
    log = out / "train.csv"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 1):
        time.sleep(0.1)  # until the first step is logged
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    (saved,) = (out / "checkpoints").glob("stage-01-step-*.ckpt")
    content = torch.load(saved, weights_only=True)
    assert content["global_step"] == content["mmalign"]["stage_step"] > 0


def test_resume_starts_goes_on_and_refuses(workplace):
    out = workplace / "run"
    train(quick(), out, resume=True)  # nothing to resume: starts
    rows = read_rows(out / "metrics.jsonl")
    assert {row.stage for row in rows} == {"start", "image_text", "audio_text"}
    train(quick(), out, resume=True)  # nothing to do
    assert read_rows(out / "metrics.jsonl") == rows
    (out / "checkpoints" / "stage-02.ckpt").unlink()  # what was measured on it is not believed
    stale = [replace(row, value=0.5) if row.stage == "audio_text" else row for row in rows]
    write_rows(out / "metrics.jsonl", stale)
    train(quick(), out, resume=True)
    assert read_rows(out / "metrics.jsonl") == rows
    with pytest.raises(ConfigError, match="holds a run already"):
        train(quick(), out)
    with pytest.raises(ConfigError, match=r"other values of stages\.image_text\.optimization\.learning_rate"):
        train(quick(**{"stages.image_text.optimization.learning_rate": 0.5}), out, resume=True)


def test_two_processes_do_not_train_in_one_folder(workplace):
    out = workplace / "shared"
    code = (
        f"import sys; from pathlib import Path; from mmalign.training.run_files import locked\n"
        f"with locked(Path({str(out)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="shared: another process trains in it"):
            train(quick(**SHORT), out, resume=True)
        assert not (out / "config.yaml").exists()
        other.kill()
    train(quick(**SHORT), out, resume=True)


def test_a_start_that_failed_claims_nothing(workplace):
    out = workplace / "failed"
    with pytest.raises(ConfigError, match="nowhere"):
        train(quick(**{"stages.image_text.data.scenes.split": "nowhere"}), out)
    assert (out / "config.yaml").exists()
    train(quick(**SHORT), out)
    assert "nowhere" not in (out / "config.yaml").read_text()
    shutil.rmtree(out / "checkpoints")  # to save space, say: what was measured stays a run
    with pytest.raises(ConfigError, match="holds a run already"):
        train(quick(**SHORT), out)


def test_a_loss_that_is_not_finite_stops_before_the_checkpoint(workplace, monkeypatch):
    from mmalign.losses import InfoNCE

    out, plain = workplace / "nan", InfoNCE.forward
    calls = []

    def poisoned(self, embeddings):
        calls.append(1)
        return plain(self, embeddings) * (float("nan") if len(calls) == 6 else 1.0)

    monkeypatch.setattr(InfoNCE, "forward", poisoned)
    with pytest.raises(
        FloatingPointError, match=r"'image_text', step 6: image_text is not finite; the batch held scenes/"
    ):
        train(quick(), out)
    (saved,) = (out / "checkpoints").glob("stage-01-step-*.ckpt")
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values() if tensor.is_floating_point())
    monkeypatch.undo()
    train(quick(), out, resume=True)
    assert any(row.stage == "audio_text" for row in read_rows(out / "metrics.jsonl"))


def test_an_infinite_gradient_stops_before_the_checkpoint(workplace, monkeypatch):
    """The loss of that step is finite; the weights after it are not."""
    from mmalign.training.module import AlignmentModule

    def poisoned(self, *_, **__):
        if self.global_step == 3:
            next(p for p in self.parameters() if p.grad is not None).grad[:] = float("inf")

    monkeypatch.setattr(AlignmentModule, "configure_gradient_clipping", poisoned)
    out = workplace / "infinite"
    with pytest.raises(FloatingPointError, match=r"'image_text', step 4: model\..* is not finite"):
        train(quick(**{"runtime.checkpoint_every_minutes": 0.0}), out)
    kept = ["stage-00.ckpt", "stage-01-step-00000002.ckpt", "stage-01-step-00000003.ckpt"]  # each step, the last two
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == kept


def test_unusable_samples_of_training_and_evaluation_are_listed(workplace, monkeypatch):
    limits = []

    def after_end(self, plan, model, losses):
        limits.append(plan.limits.max_pixels)
        report_faults([Fault("train-000000.tar", "k", 0, "read", "a method found it", "scenes", "method")])

    monkeypatch.setattr(EWC, "after_end", after_end)
    if not (workplace / "data" / "debug").exists():
        train(quick(**SHORT), workplace / "plain")  # builds it
    damaged = workplace / "data" / "damaged"
    shutil.copytree(workplace / "data" / "debug", damaged)
    broken = {split: damage(damaged / f"{split}-000000.tar", every) for split, every in (("train", 20), ("test", 30))}
    places = ("stages.image_text.data.scenes", "stages.audio_text.data.scenes", "evaluation.scenes.init_args.data")
    config = SHORT | {f"{place}.shards": "data/damaged" for place in places}
    config |= {"retention": {"ewc": {"class_path": "mmalign.retention.EWC"}}, "limits.max_pixels": 5000}
    out = workplace / "faulty"
    train(quick(**config), out)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    found = {split: {line["key"] for line in lines if line["split"] == split} for split in broken}
    assert limits == [5000, 5000]
    assert sum(line["error"] == "a method found it" for line in lines) == 1
    assert found["test"] == broken["test"]
    assert found["train"]
    assert found["train"] <= broken["train"]
    assert len(lines) == len({(line["dataset"], line["split"], line["key"]) for line in lines})
    log = list(csv.DictReader((out / "train.csv").open()))
    assert int(log[0]["quarantined"]) >= len(broken["test"])
    assert int(log[-1]["quarantined"]) == len(lines)
    rows = [row for row in read_rows(out / "metrics.jsonl") if row.direction == "image->text" and row.metric == "R@1"]
    assert {row.n_missing for row in rows} == {len(broken["test"])}
    with pytest.raises(ValueError, match=r"samples cannot be used, more than max_fault_share allows \(0\)"):
        train(quick(**config, max_fault_share=0.0), workplace / "stopped")


SHORT = {
    "stages.image_text.steps": 3,
    "stages.audio_text.steps": 1,
    "stages.image_text.optimization.warmup_steps": 0,
    "stages.audio_text.optimization.warmup_steps": 0,
    "runtime.log_every_steps": 1,
}


def damage(path: Path, every: int) -> set[str]:
    """Change a byte of every n-th sample's picture, after it was indexed; returns their keys."""
    data, broken = bytearray(path.read_bytes()), set()
    with tarfile.open(path) as tar:
        pictures = [member for member in tar.getmembers() if member.name.endswith(".png")]
    for member in pictures[::every]:
        data[member.offset_data + 40] ^= 1
        broken.add(member.name.removesuffix(".png"))
    path.write_bytes(data)
    return broken


def test_a_memory_survives(workplace):
    """The samples that a memory has seen are counted once, however often the run was interrupted."""
    train(quick(), workplace / "whole")
    train(
        quick(**{"stages.audio_text.steps": 1, "stages.audio_text.optimization.warmup_steps": 0}), workplace / "short"
    )
    first = torch.load(workplace / "whole" / "checkpoints" / "stage-01.ckpt", weights_only=True)["mmalign"]["retention"]
    again = torch.load(workplace / "short" / "checkpoints" / "stage-01.ckpt", weights_only=True)["mmalign"]["retention"]
    assert same(first, again)


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
