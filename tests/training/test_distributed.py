"""Two processes train as one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmalign.evaluation.table import read_rows

ROOT = Path(__file__).parents[2]
QUICK = {
    "stages.image_text.steps": 4,
    "stages.audio_text.steps": 4,
    "stages.image_text.optimization.warmup_steps": 1,
    "stages.audio_text.optimization.warmup_steps": 1,
    "model.init_args.projection_dropout": 0.0,
    "model.init_args.encoders.image.init_args.patch_dropout": 0.0,
    "model.init_args.encoders.image.init_args.options.drop_rate": 0.0,
    "model.init_args.encoders.audio.init_args.dropout": 0.0,
    "model.init_args.encoders.text.init_args.dropout": 0.0,
    "runtime.precision": "64-true",
    "runtime.accelerator": "cpu",
    "runtime.workers": 0,
    "runtime.threads": 1,
    "runtime.checkpoint_every_steps": 2,
    "runtime.progress_bar": "false",
    "logging.mode": "disabled",
}


def train(folder: Path, out: str, processes: int, **overrides) -> None:
    settings = QUICK | overrides | {"runtime.devices": processes}
    arguments = ["train", "--config", str(ROOT / "configs" / "debug.yaml"), "--out", out, "--resume"]
    arguments += [f"--{key}={value}" for key, value in settings.items()]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = [sys.executable, *(launcher if processes > 1 else []), "-m", "mmalign"]
    done = subprocess.run([*launcher, *arguments], cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    train(tmp_path, "one", 1)
    train(tmp_path, "two", 2)
    one, two = (
        torch.load(tmp_path / run / "checkpoints" / "stage-02.ckpt", weights_only=True)["state_dict"]
        for run in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-6, atol=1e-6, msg=name)
    rows = [read_rows(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    assert len(rows[0]) == len(rows[1])
    assert [(row.direction, row.n_queries, row.n_gallery) for row in rows[0]] == [
        (row.direction, row.n_queries, row.n_gallery) for row in rows[1]
    ]
    memories = [
        torch.load(tmp_path / run / "checkpoints" / "stage-02.ckpt", weights_only=True)["mmalign"]["retention"]
        for run in ("one", "two")
    ]
    assert memories[0].keys() == memories[1].keys()
