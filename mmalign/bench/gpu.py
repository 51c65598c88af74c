"""The losses, the training step and the cache on a GPU: `mmalign bench --device cuda`.

What they must reach there is not set: time, memory and share of what matrix products reach are put on record. What both
sides compute must be equal.
"""

from collections.abc import Callable
from typing import ClassVar

import torch

from mmalign.bench.base import NO_BAR, Benchmark, Outcome, Quantity
from mmalign.bench.frozen import FrozenTowers
from mmalign.bench.loss_step import DIM, PEERS, LossName, LossStep, loss_step
from mmalign.bench.material import Shape
from mmalign.bench.training import TrainingStep
from mmalign.training.ceiling import matmul_flops

_REPEATS = 9
_TRAINER = "open_clip_train.main"
_BF16_NOTE = "bf16 vectors; mmalign computes with them in float32, whose products torch may round to TF32"
_SHARE_NOTE = "of the 3 products that a loss and its gradients need; the rate is that of a large one in the same type"


def _against(peer: str, name: str, suffix: str = "", note: str = "") -> tuple[Quantity, ...]:
    words = f", {suffix[1:]}" if suffix else ""
    ours, theirs = f"mmalign{suffix}", f"{peer}{suffix}"
    return (
        Quantity(f"time{words}", "seconds", ours, theirs, name, NO_BAR, note=note),
        Quantity(f"peak memory{words}", "bytes", ours, theirs, name, NO_BAR, unit="bytes"),
    )


def _against_open_clip(name: str) -> tuple[Quantity, ...]:
    sides = {
        "mmalign": "fp32", "mmalign-bf16": "bf16", "open_clip": f"fp32, {name}", "open_clip-bf16": f"bf16, {name}"
    }  # fmt: skip
    return (
        *_against("open_clip", name),
        Quantity("difference of the loss", "loss", "mmalign", "open_clip", name, "<= 1e-5", "relative"),
        Quantity("difference of the gradients", "gradient", "mmalign", "open_clip", name, "<= 1e-4", "relative"),
        *_against("open_clip", name, "-bf16", _BF16_NOTE),
        *(
            Quantity(
                f"share of the rate of matrix products, {words}", "share", side, None, "–", NO_BAR, note=_SHARE_NOTE
            )
            for side, words in sides.items()
        ),
    )


class _LossOnGpu(Benchmark):
    """Every side's loss and gradients of the same vectors; the median of a few steps in one process."""

    device = "cuda"
    sides: ClassVar[tuple[str, ...]] = ("open_clip", "mmalign", "open_clip-bf16", "mmalign-bf16")
    needs: ClassVar = dict.fromkeys(("open_clip", "open_clip-bf16"), ("open_clip",))
    loss: ClassVar[LossName]
    rows: ClassVar[int]

    def load(self, side: str) -> Callable[[], Outcome]:
        peer, _, half = side.partition("-")
        dtype = torch.bfloat16 if half else torch.float32
        torch.set_float32_matmul_precision("high" if half else "highest")
        device = torch.device(self.settings.device)
        rate = matmul_flops(device, dtype)
        batch = self.settings.size(self.rows, multiple=8, least=32)
        step = loss_step(batch, self.loss, peer if peer in PEERS else None, self.settings.device, dtype)
        return lambda: self._measured(step, 3 * 2 * batch**2 * DIM / rate)

    def _measured(self, step: LossStep, least: float) -> Outcome:
        """`least`: seconds that the necessary products alone would take."""
        outcome = step.steady(_REPEATS)
        assert outcome.seconds is not None
        outcome.values["share"] = least / outcome.seconds
        return outcome


class _InfoNCEOnGpu(_LossOnGpu):
    loss = "infonce"
    sides = (*_LossOnGpu.sides, "inf_cl")
    needs: ClassVar = {**_LossOnGpu.needs, "inf_cl": ("inf_cl",)}
    quantities = (*_against_open_clip("open_clip ClipLoss"), *_against("inf_cl", "Inf-CLIP's loss"))


class InfoNCE8192(_InfoNCEOnGpu):
    name, rows = "cuda-infonce-8192", 8192
    title = "InfoNCE, forward and backward, 8,192 × 512"


class InfoNCE32768(_InfoNCEOnGpu):
    name, rows = "cuda-infonce-32768", 32768
    title = "InfoNCE, forward and backward, 32,768 × 512"


class InfoNCE65536(_InfoNCEOnGpu):
    name, rows = "cuda-infonce-65536", 65536
    title = "InfoNCE, forward and backward, 65,536 × 512"


class _SigLIPOnGpu(_LossOnGpu):
    loss = "siglip"
    quantities = _against_open_clip("open_clip SigLipLoss")


class SigLIP8192(_SigLIPOnGpu):
    name, rows = "cuda-siglip-8192", 8192
    title = "SigLIP, forward and backward, 8,192 × 512"


class SigLIP65536(_SigLIPOnGpu):
    name, rows = "cuda-siglip-65536", 65536
    title = "SigLIP, forward and backward, 65,536 × 512"


def _training(side: str, other: str, words: str) -> tuple[Quantity, ...]:
    return (
        Quantity(f"samples per second, {words}", "rate", side, other, _TRAINER, NO_BAR, unit="/s"),
        Quantity(f"peak memory, {words}", "bytes", side, other, _TRAINER, NO_BAR, unit="bytes"),
    )


class TrainingOnGpu(TrainingStep):
    """As on a CPU, with a larger model; float32 products may be rounded to TF32, as open_clip's trainer has it."""

    name, device = "cuda-training", "cuda"
    title = "10 steps of ViT-B/16 at 224 pixels and a text tower of width 512, 6 layers, batch 128, both trained"
    sides = ("open_clip", "mmalign", "open_clip-bf16", "bf16", "recommended")
    needs: ClassVar = dict.fromkeys(("open_clip", "open_clip-bf16"), ("open_clip_train", "pandas"))
    full: ClassVar = Shape(batch=128, image=224, width=768, layers=12)
    quantities = (
        *_training("mmalign", "open_clip", "fp32"),
        Quantity(
            "difference of the loss curve, fp32", "losses", "mmalign", "open_clip", _TRAINER, NO_BAR, "absolute"
        ),
        *_training("bf16", "open_clip-bf16", "bf16"),
        *_training("recommended", "open_clip-bf16", "bf16, half of the patches dropped"),
    )  # fmt: skip


class FrozenOnGpu(FrozenTowers):
    """As on a CPU, with a larger model."""

    name, device = "cuda-frozen-towers", "cuda"
    title = "10 steps of two heads on frozen ViT-B/16 at 224 pixels and text towers, batch 256, decoding included"
    full: ClassVar = Shape(batch=256, image=224, width=768, layers=12)
    quantities = (
        Quantity(
            "samples per second", "rate", "cached", "recompute", "itself, computing both towers", NO_BAR, unit="/s"
        ),
        Quantity(
            "difference of the loss curve", "losses", "cached", "recompute", "itself, computing both towers",
            "<= 1e-5", "absolute",
        ),
    )  # fmt: skip
