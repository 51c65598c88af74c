"""What a stage costs: samples, tokens, operations, seconds, memory, bytes stored, energy, money."""

import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmalign.batch import Batch
from mmalign.training.callbacks import peak_memory_bytes
from mmalign.training.ceiling import EnergyMeter, matmul_flops


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage, over all ranks.

    Attributes:
        stage: its name.
        samples: rows of all batches.
        tokens: real positions of text among them.
        flops: floating-point operations of one step (forward, backward), as torch's counter sees them, times the steps.
        seconds: wall-clock time of training; step_seconds without waiting for data.
        peak_memory_bytes: of the process, or of the GPU.
        bytes_stored: what retention methods keep.
        price: seconds times the price per hour.
        samples_per_second, tokens_per_second: over the time in steps.
        utilisation: flops over what matrix products alone would reach in that time at the rate measured on this device,
            in the run's precision (model-FLOPs utilisation; whatever runs twice counts twice).
        energy_joules: of rank 0's GPU and its machine's processors while it trained; None where nothing reports it.
    """

    stage: str
    samples: int
    tokens: int
    flops: float
    seconds: float
    step_seconds: float
    peak_memory_bytes: int
    bytes_stored: int
    price: float
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    utilisation: float = 0.0
    energy_joules: float | None = None


class CostMeter(L.Callback):
    """Counts while a stage trains; operations are counted in its first step only, because counting is slow."""

    def __init__(self, price_per_hour: float) -> None:
        self.price_per_hour = price_per_hour
        self.samples = self.tokens = self.steps = 0
        self.flops_per_step = 0.0
        self.step_seconds = 0.0
        self.energy_joules = 0.0
        self._counter: Any = None
        self._started = 0.0
        self._ceiling = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "64-true": torch.float64}
        dtype = dtypes.get(str(trainer.precision), torch.float32)
        self._ceiling = matmul_flops(trainer.strategy.root_device, dtype) * trainer.world_size
        self._energy_before = self.energy_joules  # of a stage that goes on
        self._energy = EnergyMeter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        self._started = time.perf_counter()
        if self.steps == 0:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops_per_step = float(self._counter.get_total_flops()) * trainer.world_size
            self._counter = None
        self.steps += 1
        self.samples += len(batch) * trainer.world_size
        # every rank counts its own rows; they are alike in number
        self.tokens += trainer.world_size * sum(
            int(values.mask.sum())
            for values in batch.modalities.values()
            if values.mask is not None and values.values is not None and not values.values.is_floating_point()
        )
        self.step_seconds += time.perf_counter() - self._started
        self._energy.update()
        self.energy_joules = self._energy_before + (self._energy.joules or 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Travels in checkpoints, so that a resumed stage counts its whole cost."""
        names = ("samples", "tokens", "steps", "flops_per_step", "step_seconds", "energy_joules")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def result(self, stage: str, seconds: float, bytes_stored: int) -> StageCost:
        flops, busy = self.flops_per_step * self.steps, max(self.step_seconds, 1e-9)
        return StageCost(
            stage=stage,
            samples=self.samples,
            tokens=self.tokens,
            flops=flops,
            seconds=seconds,
            step_seconds=self.step_seconds,
            peak_memory_bytes=peak_memory_bytes(),
            bytes_stored=bytes_stored,
            price=seconds / 3600 * self.price_per_hour,
            samples_per_second=self.samples / busy,
            tokens_per_second=self.tokens / busy,
            utilisation=flops / busy / self._ceiling if self._ceiling else 0.0,
            energy_joules=self.energy_joules or None,
        )
