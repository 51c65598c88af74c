"""What a stage costs: samples, tokens, operations, seconds, memory, bytes stored, energy, money."""

import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmalign.batch import Batch
from mmalign.model import Aligner
from mmalign.training.callbacks import peak_memory_bytes, reset_peak_memory
from mmalign.training.ceiling import EnergyMeter, matmul_flops
from mmalign.training.module import AlignmentModule


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage, over all ranks. Of a stage that was killed and went on, that of all its processes, except
    for the peak of memory.

    Attributes:
        stage: its name.
        samples: rows of all batches.
        tokens: real positions of text among them, begin and end tokens included; none of texts that come as cached
            features.
        flops: floating-point operations (forward, backward, what is computed again), as torch's counter sees them in a
            few steps: see CostMeter.
        seconds: wall-clock time of training.
        step_seconds: of it, the time in steps. A GPU may still work when a step's clock stops; what is left then falls
            into the time after it.
        peak_memory_bytes: allocated on rank 0's GPU in this stage. Without a GPU, of rank 0's process since it began,
            earlier stages and evaluation included.
        bytes_stored: what retention methods keep.
        price: seconds times the price per hour of all machines.
        samples_per_second, tokens_per_second: over loop_seconds.
        utilisation: flops over what matrix products alone would reach in step_seconds at the rate measured on this
            device, in the run's precision. What is computed again counts again: hardware-FLOPs utilisation.
        energy_joules: of rank 0's GPU and its machine's processors while it trained; None where nothing reports it.
        loop_seconds: wall-clock time of the training loop: the steps, and what passes between them.
        data_wait_share: of loop_seconds, what passes between steps: the wait for data, and what checkpoints take.
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
    loop_seconds: float = 0.0
    data_wait_share: float = 0.0


class CostMeter(L.Callback):
    """Counts while a stage trains.

    Counting operations is slow. They are counted in steps 1, 2, 10, 100, 1000, … of a process, and a step in between
    is taken to cost what the last counted one did: the first steps also compute what is then remembered.

    Args:
        price_per_hour: of all machines together.
    """

    def __init__(self, price_per_hour: float) -> None:
        self.price_per_hour = price_per_hour
        self.samples = 0
        self.tokens: int | Tensor = 0  # stays on the device: asking for a number would wait for it
        self.flops = 0.0
        self.step_seconds = 0.0
        self.loop_seconds = 0.0
        self.energy_joules = 0.0
        self._counter: FlopCounterMode | None = None
        self._steps_here = 0
        self._flops_per_step = 0.0
        self._loop_before = 0.0
        self._ceiling = 0.0
        self._device = torch.device("cpu")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "64-true": torch.float64}
        dtype = dtypes.get(str(trainer.precision), torch.float32)
        self._device = trainer.strategy.root_device
        self._ceiling = matmul_flops(self._device, dtype) * trainer.world_size
        reset_peak_memory(self._device)
        self._loop_before, self._energy_before = self.loop_seconds, self.energy_joules  # of a stage that goes on
        self._energy = EnergyMeter(self._device)
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        self._started = time.perf_counter()
        self._steps_here += 1
        if _is_counted(self._steps_here):
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(module, AlignmentModule)
        self._stop_counting(trainer)
        self.flops += self._flops_per_step
        # every rank counts its own rows; they are alike in number
        self.samples += len(batch) * trainer.world_size
        self.tokens = self.tokens + real_tokens(module.model, batch) * trainer.world_size
        now = time.perf_counter()
        self.step_seconds += now - self._started
        self.loop_seconds += now - self._since
        self._since = now
        self._energy.update()
        self.energy_joules = self._energy_before + (self._energy.joules or 0.0)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._stop_counting(trainer)  # or it would count for the rest of the process

    def _stop_counting(self, trainer: L.Trainer) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._flops_per_step = float(self._counter.get_total_flops()) * trainer.world_size
            self._counter = None

    def state_dict(self) -> dict[str, Any]:
        """Travels in checkpoints, so that a resumed stage counts its whole cost."""
        names = ("samples", "flops", "step_seconds", "loop_seconds", "energy_joules")
        return {"tokens": int(self.tokens)} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def result(self, stage: str, seconds: float, bytes_stored: int) -> StageCost:
        """`seconds`: wall-clock time of training in this process."""
        seconds += self._loop_before
        busy, loop = max(self.step_seconds, 1e-9), max(self.loop_seconds, 1e-9)
        return StageCost(
            stage=stage,
            samples=self.samples,
            tokens=int(self.tokens),
            flops=self.flops,
            seconds=seconds,
            step_seconds=self.step_seconds,
            peak_memory_bytes=peak_memory_bytes(self._device),
            bytes_stored=bytes_stored,
            price=seconds / 3600 * self.price_per_hour,
            samples_per_second=self.samples / loop,
            tokens_per_second=int(self.tokens) / loop,
            utilisation=self.flops / busy / self._ceiling if self._ceiling else 0.0,
            energy_joules=self.energy_joules or None,
            loop_seconds=self.loop_seconds,
            data_wait_share=1 - busy / loop,
        )


def real_tokens(model: Aligner, batch: Batch) -> Tensor:
    """How many positions of all texts of the batch are real, as their towers see it."""
    total = torch.zeros((), dtype=torch.long, device=batch.group.device)
    for name, values in batch.modalities.items():
        if values.values is None or values.values.is_floating_point():
            continue
        real = model.tower(name).real_positions(values.values, values.mask)
        if real is not None:
            total += (real & values.present[:, None]).sum()
    return total


def _is_counted(step: int) -> bool:
    """1, 2, 10, 100, 1000, …"""
    return step == 2 or str(step).rstrip("0") == "1"
