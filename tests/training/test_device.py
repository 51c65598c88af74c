"""A run and a command compute on the device that is meant, from the beginning."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from mmalign.batch import Batch
from mmalign.training import curriculum
from mmalign.training.config import check_config
from mmalign.training.device import named_device, root_device
from mmalign.training.experiment import Runtime
from mmalign.training.logging import RunLoggers
from mmalign.training.module import AlignmentModule
from mmalign.training.run import train
from mmalign.training.yaml_config import read_config

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


def quick():
    overrides = {
        "sources.data/debug.init_args": {"train": 96, "val": 16, "test": 16, "test_compositional": 16},
        "runtime": {"accelerator": "cpu", "workers": 0, "threads": 1, "progress_bar": False},
        "logging.mode": "disabled",
    }
    return check_config(read_config(DEBUG, overrides))


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch believe that the machine has so many."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return pretend


def test_names_of_devices(gpus):
    gpus(2)
    assert [str(named_device(name)) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(ValueError, match="--device cuda:2: this machine has 2 devices of the kind 'cuda'"):
        named_device("cuda:2")
    gpus(0)
    assert named_device("auto") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(ValueError, match=f"--device {name}: this machine has 0 devices"):
            named_device(name)
    for name in ("gpu", "cuda:", "cpu:1", "meta", ""):
        with pytest.raises(ValueError, match="is none of auto, cpu, cuda, cuda:N, mps"):
            named_device(name)


def test_the_root_device_is_that_of_the_local_rank(gpus, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)  # Lightning sets it
    numbers = {"RANK": 3, "LOCAL_RANK": 1, "GROUP_RANK": 1, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
    for name, number in numbers.items():
        monkeypatch.setenv(name, str(number))
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    gpus(2)
    for accelerator, device in (("auto", "cuda:1"), ("gpu", "cuda:1"), ("cpu", "cpu")):
        assert root_device(Runtime(accelerator=accelerator, devices=2, num_nodes=2)) == torch.device(device)
    with pytest.raises(ValueError, match=r"runtime\.devices: .*\[0, 1, 2, 3\] But"):
        root_device(Runtime(accelerator="gpu", devices=4))


def test_an_accelerator_that_is_not_there_is_refused(gpus):
    gpus(0)
    assert root_device(Runtime()) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"^runtime\.accelerator, runtime\.devices: "):
        root_device(Runtime(accelerator="gpu"))


def test_only_a_gpu_is_copied_to_without_waiting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sent = []

    def step(module, batch, number):
        raise InterruptedError

    monkeypatch.setattr(Batch, "to", lambda batch, *place, **how: sent.append((*place, how)) or batch)
    monkeypatch.setattr(AlignmentModule, "training_step", step)
    monkeypatch.setattr(curriculum, "evaluate_all", lambda *_: [])
    monkeypatch.setattr(RunLoggers, "log_rows", lambda *_: None)
    with pytest.raises(InterruptedError):
        train(quick(), tmp_path / "run")
    assert sent == [(torch.device("cpu"), {"non_blocking": False})]
    batch = Batch(["a/0"], {}, torch.zeros(1, dtype=torch.long))
    for name in ("cuda:1", "mps"):
        AlignmentModule.transfer_batch_to_device(None, batch, torch.device(name), 0)
    assert sent[1:] == [
        (torch.device("cuda", 1), {"non_blocking": True}),
        (torch.device("mps"), {"non_blocking": False}),
    ]


def test_products_are_rounded_in_training_steps_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def step(module, batch, number):
        seen.append(torch.get_float32_matmul_precision())
        raise InterruptedError

    monkeypatch.setattr(AlignmentModule, "training_step", step)
    monkeypatch.setattr(curriculum, "evaluate_all", lambda *_: seen.append(torch.get_float32_matmul_precision()) or [])
    monkeypatch.setattr(RunLoggers, "log_rows", lambda *_: None)
    config = quick()
    config["runtime"]["matmul_precision"] = "high"
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "run")
    assert seen == ["highest", "high"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_run_is_on_its_device_before_the_first_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device, moved = torch.device("cuda", 1), []

    def evaluate_all(model, evaluators, moment):
        assert model in moved
        assert sum(isinstance(module, nn.Module) for module in moved) == 1 + len(losses)
        raise InterruptedError

    losses = read_config(DEBUG, {})["losses"]
    monkeypatch.setattr(curriculum, "root_device", lambda runtime: device)
    monkeypatch.setattr(nn.Module, "to", lambda module, *place, **_: moved.append(module) if place == (device,) else 0)
    monkeypatch.setattr(curriculum, "evaluate_all", evaluate_all)
    with pytest.raises(InterruptedError):
        train(quick(), tmp_path / "run")
