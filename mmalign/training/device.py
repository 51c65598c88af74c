"""Which device a process computes on."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mmalign.training.experiment import Runtime


def trainer_settings(runtime: Runtime) -> dict[str, Any]:
    """What a Lightning Trainer chooses its processes and their devices by."""
    distributed = runtime.devices * runtime.num_nodes > 1
    return {
        "accelerator": runtime.accelerator,
        "devices": runtime.devices,
        "num_nodes": runtime.num_nodes,
        "strategy": "ddp_find_unused_parameters_true" if distributed else "auto",
    }


def check_runtime(runtime: Runtime) -> None:
    """The machine has the devices, and a launcher, if there is one, started as many processes.

    Raises:
        ValueError: names the key.
    """
    processes = runtime.devices * runtime.num_nodes
    if TorchElasticEnvironment.detect() and TorchElasticEnvironment().world_size() != processes:
        raise ValueError(
            f"runtime.devices: {runtime.devices}, on runtime.num_nodes {runtime.num_nodes}, make {processes} "
            f"processes, but torchrun has started {TorchElasticEnvironment().world_size()}"
        )
    root_device(runtime)


def root_device(runtime: Runtime) -> torch.device:
    """The device on which Lightning will train in this process: of several GPUs, that of the local rank.

    Raises:
        ValueError: the machine has no such accelerator, or not as many devices.
    """
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    try:
        trainer = L.Trainer(**trainer_settings(runtime), **quiet, enable_progress_bar=False)
    except MisconfigurationException as error:
        raise ValueError(f"runtime.accelerator, runtime.devices: {' '.join(str(error).split())}") from None
    return trainer.strategy.root_device


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Within it, what torch may round the factors of float32 matrix products to: "highest", "high" or "medium"."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def named_device(name: str) -> torch.device:
    """ "auto" (a GPU where there is one), "cpu", "cuda", "cuda:N" or "mps" -> the device.

    Raises:
        ValueError: it is none of these, or the machine does not have it.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"--device {name!r} is none of auto, cpu, cuda, cuda:N, mps")
    found = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        name = next(kind for kind, count in found.items() if count)
    device = torch.device(name)
    if (device.index or 0) >= found[device.type]:
        raise ValueError(f"--device {name}: this machine has {found[device.type]} devices of the kind {device.type!r}")
    return device
