"""Two processes train as one does, also when they are killed and go on."""

import csv
import filecmp
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.evaluation.table import read_rows, write_rows
from mmalign.training.config import check_config
from mmalign.training.run import train as train_here
from mmalign.training.yaml_config import parse_overrides, read_config

ROOT = Path(__file__).parents[2]
QUICK = {
    "sources.data/debug.init_args": "{train: 96, val: 16, test: 24, test_compositional: 16}",
    "evaluation.language.init_args.data.limit": 4,
    "stages.image_text.data.scenes.modalities": '{image: png, audio: flac, text: "captions[*]"}',  # no loss hears it
    "sweep": "[0.5]",
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of one process, the run of two, and their data."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder, "one", 1)
    train(folder, "two", 2)
    return folder


def final(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "stage-02.ckpt", weights_only=True)


def assert_close(run: Path, other: Path) -> None:
    one, two = final(run)["state_dict"], final(other)["state_dict"]
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.slow
def test_two_processes_equal_one(runs: Path) -> None:
    assert_close(runs / "one", runs / "two")
    for table in ("metrics.jsonl", "sweep/0.50.jsonl"):
        rows = [read_rows(runs / run / table) for run in ("one", "two")]
        assert len(rows[0]) == len(rows[1])
        assert [(row.direction, row.n_queries, row.n_gallery) for row in rows[0]] == [
            (row.direction, row.n_queries, row.n_gallery) for row in rows[1]
        ]
    memories = [final(runs / run)["mmalign"]["retention"] for run in ("one", "two")]
    assert memories[0].keys() == memories[1].keys()


@pytest.mark.slow
def test_two_processes_log_the_losses_of_one(runs: Path) -> None:
    logs = [list(csv.DictReader((runs / run / "train.csv").open())) for run in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) > 0
    for one, two in zip(*logs, strict=True):
        names = [name for name in one if name.startswith(("loss", "gradient_norm")) and one[name]]
        assert len(names) > 2
        for name in names:
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-6, abs=1e-9), name


def on_rank(rank: int, port: int, folder: Path, out: str) -> None:
    """What torchrun does for a process; forked, because starting anew takes longer than the training."""
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only.rank = rank
    log = os.open(folder / f"{out}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": out}
    torch.set_num_threads(1)
    overrides = parse_overrides([f"--{key}={value}" for key, value in (QUICK | {"runtime.devices": 2}).items()])
    train_here(check_config(read_config(ROOT / "configs" / "debug.yaml", overrides)), folder / out, resume=True)


def start_ranks(folder: Path, out: str) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=on_rank, args=(rank, port, folder, out)) for rank in range(2)]
    for process in ranks:
        process.start()
    return ranks


@pytest.mark.slow
def test_killed_ranks_go_on_in_every_bit(runs: Path) -> None:
    """The second stage of the run of two processes once more: killed within it, and resumed."""
    plain, killed = runs / "two", runs / "killed"
    shutil.copytree(plain, killed, ignore=shutil.ignore_patterns("stage-02.ckpt", "report.html"))
    rows = read_rows(killed / "metrics.jsonl")
    write_rows(killed / "metrics.jsonl", [row for row in rows if row.stage != "audio_text"])
    checkpoint = killed / "checkpoints" / "stage-02-step-00000002.ckpt"
    ranks = start_ranks(runs, "killed")
    while not checkpoint.exists():
        assert all(process.is_alive() for process in ranks), (runs / "killed-0.log").read_text()[-3000:]
        time.sleep(0.02)
    for process in ranks:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not (killed / "checkpoints" / "stage-02.ckpt").exists()
    for process in (resumed := start_ranks(runs, "killed")):
        process.join(200)
    assert [process.exitcode for process in resumed] == [0, 0], (runs / "killed-0.log").read_text()[-3000:]
    expected, found = final(plain), final(killed)
    assert same(expected["state_dict"], found["state_dict"])
    assert same(expected["mmalign"]["retention"], found["mmalign"]["retention"])
    assert filecmp.cmp(plain / "metrics.jsonl", killed / "metrics.jsonl", shallow=False)
    assert_close(runs / "one", killed)


def same(one: Any, other: Any) -> bool:
    """Equal in every bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
