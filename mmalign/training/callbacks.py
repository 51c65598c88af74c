"""What happens beside a training step: logging, checkpoints, a clean exit on SIGTERM and Ctrl-C."""

import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from mmalign.batch import Batch
from mmalign.data.faults import QuarantineLog
from mmalign.losses.base import Loss
from mmalign.training.checkpoints import CheckpointFolder
from mmalign.training.gather import world_size
from mmalign.training.module import AlignmentModule
from mmalign.training.pairs import BATCHES, PairWatch


class Journal(L.Callback):
    """Logs losses, their anchors, scales, learning rates, gradient norm, samples per second, data wait and memory.

    Losses are those of the global batch: the sum of what the ranks have. `pairs/LOSS` is what a loss is divided by: the
    rows that have both its modalities, or the tokens predicted. Warns where the first batches hold hardly any.

    Args:
        log: takes (values by name, step over all stages).
        offset: optimizer steps of the stages before.
        every: in steps.
        quarantine: gets the faults of every batch.
        splits: (data set, split) that the stage draws from.
        allowed_faults: the run stops when there are more among these.
    """

    def __init__(
        self,
        log: Callable[[dict[str, Any], int], None],
        offset: int,
        every: int,
        quarantine: QuarantineLog,
        splits: set[tuple[str, str]],
        allowed_faults: float,
    ) -> None:
        self._log = log  # not `log`: Lightning sets that name of every callback
        self.offset = offset
        self.every = every
        self.quarantine = quarantine
        self.splits = splits
        self.allowed_faults = allowed_faults
        self.samples = 0
        self.waited_seconds = 0.0
        self.gradient_norm = float("nan")
        self._since = self._ended = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, AlignmentModule)
        self._pairs = PairWatch(module.plan.name)
        self._since = self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        self.waited_seconds += time.perf_counter() - self._ended
        if not self.quarantine.add(batch.faults):
            return
        lost = self.quarantine.count_of(self.splits)
        if lost > self.allowed_faults:
            raise ValueError(
                f"{lost} samples cannot be used, more than max_fault_share allows "
                f"({self.allowed_faults:.0f}); {self.quarantine.path} says which and why"
            )

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        if self._due(trainer.global_step + 1, trainer):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self.gradient_norm = float(torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(module, AlignmentModule)
        self.samples += len(batch) * trainer.world_size
        losses = {name: cast(Loss, module.losses[name]) for name in module.plan.losses}
        self._pairs.add(losses, module.embeddings, module.plan.separate_replay)
        if self._due(trainer.global_step, trainer):
            now = time.perf_counter()
            elapsed = now - self._since
            self.quarantine.refresh()  # the other ranks write to it, too
            values: dict[str, Any] = {"stage": module.plan.name, "stage_step": trainer.global_step}
            shares = torch.stack(list(module.terms.values()))  # this rank's; they add up
            sums = cast(Tensor, trainer.strategy.reduce(shares, reduce_op="sum"))
            values |= dict(zip(module.terms, sums.tolist(), strict=True))
            if losses:
                counts = torch.stack([loss.anchor_count(module.embeddings).float() for loss in losses.values()])
                values |= {f"pairs/{name}": n for name, n in zip(losses, counts.tolist(), strict=True)}
            if trainer.is_global_zero and (self._pairs.batches == BATCHES or trainer.global_step == trainer.max_steps):
                self._pairs.warn()
            values |= {
                f"logit_scale/{name}": loss.logit_scale.detach().item()  # type: ignore[operator]
                for name, loss in losses.items()
                if hasattr(loss, "logit_scale")
            }
            values |= {
                f"learning_rate/{group.get('name', i)}": group["lr"]
                for i, group in enumerate(trainer.optimizers[0].param_groups)
            }
            values |= {
                "gradient_norm": self.gradient_norm,
                "samples_per_second": self.samples / elapsed,
                "data_wait_share": self.waited_seconds / elapsed,
                "quarantined": self.quarantine.count,
                "memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
            }
            self._log(values, self.offset + trainer.global_step)
            self.samples, self.waited_seconds, self._since = 0, 0.0, now
        self._ended = time.perf_counter()

    def _due(self, step: int, trainer: L.Trainer) -> bool:
        return step % self.every == 0 or step == trainer.max_steps or step == 1


class StepsBar(TQDMProgressBar):
    """Lightning's progress bar with the stage in place of the epoch, of which a stage has no number."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        module = trainer.lightning_module
        assert isinstance(module, AlignmentModule)
        self.train_progress_bar.set_description(f"{module.plan.name}, step")


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was allocated on a GPU since `reset_peak_memory`; elsewhere, of the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device) -> None:
    """A GPU's peak counts from now on; that of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def stop_unless_finite(module: torch.nn.Module, place: str) -> None:
    """A finite loss may have an infinite gradient: the weights are ruined before the next loss tells.

    Raises:
        FloatingPointError: names the first parameter that is not finite; before a checkpoint is written.
    """
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FloatingPointError(f"{place}: {name} is not finite. The last checkpoint is untouched.")


def on_any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """Which flags are set on at least one rank; in a single exchange, as it takes place at every step."""
    if world_size() == 1:
        return flags
    told = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return told.bool().tolist()


def stop(interrupted: bool) -> NoReturn:
    """End the process after SIGTERM (exit status 143) or SIGINT, which is Ctrl-C (130); the state is saved by then."""
    if not getattr(rank_zero_only, "rank", 0):
        print(f"mmalign: {'interrupted' if interrupted else 'terminated'}; go on with --resume", file=sys.stderr)
    raise SystemExit(128 + (signal.SIGINT if interrupted else signal.SIGTERM))


class Checkpoints(L.Callback):
    """Saves within a stage every so many steps or minutes, and on SIGTERM and SIGINT, after which the process ends.

    The end of a stage is saved by the curriculum, which then ends the process if one of them came in the last step.
    """

    def __init__(self, folder: CheckpointFolder, every_steps: int, every_minutes: float) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.every_seconds = every_minutes * 60
        self._saved = time.monotonic()
        self.terminated = threading.Event()
        self.interrupted = threading.Event()
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            # Lightning's handler of SIGTERM ends the loop without saving, and so does a KeyboardInterrupt
            for number, event in ((signal.SIGTERM, self.terminated), (signal.SIGINT, self.interrupted)):
                self._previous[number] = signal.signal(number, lambda *_, event=event: event.set())

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(module, AlignmentModule)
        step = trainer.global_step
        late = trainer.is_global_zero and time.monotonic() - self._saved >= self.every_seconds  # one clock for all
        flags = [late, self.terminated.is_set(), self.interrupted.is_set()]
        late, terminated, interrupted = on_any_rank(flags, trainer.strategy.root_device)
        if step >= trainer.max_steps:
            return
        if terminated or interrupted or late or step % self.every_steps == 0:
            stop_unless_finite(module, f"stage {module.plan.name!r}, step {step}")
            trainer.save_checkpoint(self.folder.within(module.plan.index, step))
            self._saved = time.monotonic()
            if trainer.is_global_zero:
                self.folder.prune(module.plan.index)
        if terminated or interrupted:
            stop(interrupted)
