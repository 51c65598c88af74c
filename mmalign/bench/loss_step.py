"""One forward and backward pass of a contrastive loss, mmalign's or a peer's."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.batch import Embeddings
from mmalign.bench.base import Outcome
from mmalign.losses.infonce import InfoNCE
from mmalign.losses.siglip import SigLIP
from mmalign.training.ceiling import timed

DIM = 512
LossName = Literal["infonce", "siglip"]


class LossStep:
    """Unit vectors of two modalities -> loss and gradients; called, it does one step and returns the arrays "loss",
    "gradient.x", "gradient.y" and "gradient.log_scale".

    Args:
        compute: the loss, differentiable by `x`, `y` and `log_scale`.
        x, y: both modalities' vectors, [rows, DIM].
        log_scale: logarithm of the factor of the similarities; a scalar.
    """

    def __init__(self, compute: Callable[[], Tensor], x: Tensor, y: Tensor, log_scale: Tensor) -> None:
        self._compute = compute
        self._inputs = {"x": x, "y": y, "log_scale": log_scale}

    def run(self) -> Tensor:
        """The step alone; on a GPU it may still be under way when this returns."""
        for tensor in self._inputs.values():
            tensor.grad = None
        loss = self._compute()
        loss.backward()
        return loss.detach()

    def __call__(self) -> Outcome:
        return self._outcome(self.run())

    def steady(self, repeats: int) -> Outcome:
        """What a step takes in a training: the median of `repeats`, after a first one that waits for memory."""
        loss = self.run().cpu()  # a GPU has finished with it, too
        device = self._inputs["x"].device
        seconds = statistics.median(timed(self.run, device) for _ in range(repeats))
        return replace(self._outcome(loss), seconds=seconds)

    def _outcome(self, loss: Tensor) -> Outcome:
        arrays = {
            f"gradient.{name}": np.asarray(tensor.grad.cpu().float())
            for name, tensor in self._inputs.items()
            if tensor.grad is not None
        }
        return Outcome(arrays={"loss": loss.double().cpu().numpy()[None], **arrays})


def loss_step(
    batch: int,
    loss: LossName = "infonce",
    peer: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LossStep:
    """The step on `batch` pairs of vectors that mostly find each other.

    Args:
        batch: rows.
        peer: one of PEERS; None is mmalign.
        dtype: of the vectors.
    """
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(batch, DIM, generator=generator), dim=1)
    y = F.normalize(x + 0.05 * torch.randn(batch, DIM, generator=generator), dim=1)
    x, y = (v.to(device, dtype).requires_grad_() for v in (x, y))
    compute, log_scale = _mmalign(loss, x, y) if peer is None else PEERS[peer](loss, x, y)
    return LossStep(compute, x, y, log_scale)


def _mmalign(loss: LossName, x: Tensor, y: Tensor) -> tuple[Callable[[], Tensor], Tensor]:
    module = (InfoNCE("a", "b") if loss == "infonce" else SigLIP("a", "b")).to(x.device)
    present = torch.ones(len(x), dtype=torch.bool, device=x.device)
    embeddings = Embeddings({"a": x, "b": y}, {"a": present, "b": present}, torch.arange(len(x), device=x.device))
    return lambda: module(embeddings), module.scale.log


def _open_clip(loss: LossName, x: Tensor, y: Tensor) -> tuple[Callable[[], Tensor], Tensor]:
    from open_clip.loss import ClipLoss, SigLipLoss

    module: Any = ClipLoss() if loss == "infonce" else SigLipLoss()
    log_scale = torch.tensor(1 / 0.07 if loss == "infonce" else 10.0, device=x.device).log().requires_grad_()
    bias = torch.tensor(-10.0, device=x.device, requires_grad=True)
    more = {} if loss == "infonce" else {"logit_bias": bias}
    return lambda: module(x, y, log_scale.exp(), **more), log_scale


def _inf_cl(loss: LossName, x: Tensor, y: Tensor) -> tuple[Callable[[], Tensor], Tensor]:
    from inf_cl import cal_flash_loss

    log_scale = torch.tensor(1 / 0.07, device=x.device).log().requires_grad_()

    def compute() -> Tensor:
        forth, back = (cal_flash_loss(*pair, scale=log_scale.exp()).mean() for pair in ((x, y), (y, x)))
        return (forth + back) / 2

    return compute, log_scale


PEERS = {"open_clip": _open_clip, "inf_cl": _inf_cl}
"""By name; Inf-CLIP's Triton kernels, of the package inf_cl, know InfoNCE alone."""
