"""The contrastive losses, forward and backward, against open_clip's and against themselves at four times the batch."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.batch import Embeddings
from mmalign.bench.base import Benchmark, Ceilings, Outcome, Quantity
from mmalign.bench.ratios import verdict
from mmalign.losses.infonce import InfoNCE
from mmalign.losses.siglip import SigLIP

_BATCH = 8192
_DIM = 512
_LOSSES = {"infonce": "open_clip ClipLoss", "siglip": "open_clip SigLipLoss"}


class _Contrast(Benchmark):
    """Unit vectors of two modalities -> loss and gradients."""

    loss: str = "infonce"

    def batch(self, side: str) -> int:
        return self.settings.size(_BATCH, multiple=8, least=32)

    def load(self, side: str) -> Callable[[], Outcome]:
        step = self._open_clip if side == "open_clip" else self._mmalign
        run = step(*_vectors(64))
        run()
        return step(*_vectors(self.batch(side)))

    def _mmalign(self, x: Tensor, y: Tensor) -> Callable[[], Outcome]:
        return _mmalign_step(InfoNCE("a", "b") if self.loss == "infonce" else SigLIP("a", "b"), x, y)

    def _open_clip(self, x: Tensor, y: Tensor) -> Callable[[], Outcome]:
        from open_clip.loss import ClipLoss, SigLipLoss

        loss: Any = ClipLoss() if self.loss == "infonce" else SigLipLoss()
        log_scale = torch.tensor(1 / 0.07 if self.loss == "infonce" else 10.0).log().requires_grad_()
        more = {} if self.loss == "infonce" else {"logit_bias": torch.tensor(-10.0, requires_grad=True)}
        return lambda: _finish(loss(x, y, log_scale.exp(), **more), x, y, log_scale)


def _mmalign_step(loss: InfoNCE | SigLIP, x: Tensor, y: Tensor) -> Callable[[], Outcome]:
    present = torch.ones(len(x), dtype=torch.bool)
    embeddings = Embeddings({"a": x, "b": y}, {"a": present, "b": present}, torch.arange(len(x)))
    return lambda: _finish(loss(embeddings), x, y, loss.scale.log)


def loss_step(batch: int) -> Callable[[], Outcome]:
    """mmalign's InfoNCE of so many rows, forward and backward."""
    return _mmalign_step(InfoNCE("a", "b"), *_vectors(batch))


def _vectors(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(batch, _DIM, generator=generator), dim=1)
    y = F.normalize(x + 0.05 * torch.randn(batch, _DIM, generator=generator), dim=1)
    return x.requires_grad_(), y.requires_grad_()


def _finish(loss: Tensor, x: Tensor, y: Tensor, log_scale: Tensor) -> Outcome:
    loss.backward()
    inputs = {"x": x, "y": y, "log_scale": log_scale}
    arrays = {f"gradient.{name}": np.asarray(tensor.grad) for name, tensor in inputs.items()}
    return Outcome(arrays={"loss": loss.detach().double().numpy()[None], **arrays})


def _quantities(peer: str, time_bar: str, memory_bar: str) -> tuple[Quantity, ...]:
    return (
        Quantity("time", "seconds", "mmalign", "open_clip", peer, time_bar),
        Quantity("peak memory", "bytes", "mmalign", "open_clip", peer, memory_bar, unit="bytes"),
        Quantity("difference of the loss", "loss", "mmalign", "open_clip", peer, "<= 1e-6", "relative"),
        Quantity("difference of the gradients", "gradient", "mmalign", "open_clip", peer, "<= 1e-5", "relative"),
    )


class InfoNCEAgainstOpenClip(_Contrast):
    """Both keep fp32; the peer holds two B × B matrices and more, mmalign two tiles."""

    name = "infonce"
    title = "InfoNCE, forward and backward, 8,192 × 512"
    sides = ("open_clip", "mmalign")
    needs: ClassVar = {"open_clip": ("open_clip",)}
    quantities = _quantities(_LOSSES["infonce"], "<= 0.4", "<= 0.125")

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.label != "time":
            return ""
        return product_roofline(self.batch("mmalign"), 4, 6, 2, quantity.bar, medians, ceilings)


class InfoNCEGrowth(_Contrast):
    """Four times the batch: sixteen times the operations, four times the memory of the gradients."""

    name = "infonce-32768"
    title = "InfoNCE, forward and backward, 32,768 × 512"
    sides = ("8192", "32768")
    quantities = (
        Quantity("peak memory", "bytes", "32768", "8192", "itself at 8,192", "<= 3", unit="bytes"),
        Quantity("time", "seconds", "32768", "8192", "itself at 8,192", "<= 18"),
    )

    def batch(self, side: str) -> int:
        return self.settings.size(int(side), multiple=8, least=32)

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.measure != "bytes":
            return ""
        gradients, tiles = 2 * 4 * _DIM, 2 * 16 * 2**20
        small, large = (gradients * self.batch(side) + tiles for side in self.sides)
        return (
            f"{gradients} bytes of gradients a row, which the caller gets, and two tiles of 16 MiB make "
            f"{small / 2**20:.0f} and {large / 2**20:.0f} MiB, a ratio of {large / small:.2f}; without tiles it is 4"
        )


class SigLIPAgainstOpenClip(_Contrast):
    """As InfoNCE; every pair's gradient is known when its loss is, so nothing is computed twice."""

    name = "siglip"
    title = "SigLIP, forward and backward, 8,192 × 512"
    sides = ("open_clip", "mmalign")
    needs: ClassVar = {"open_clip": ("open_clip",)}
    loss = "siglip"
    quantities = _quantities(_LOSSES["siglip"], "<= 0.7", "<= 0.16666667")

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.label != "time":
            return ""
        return product_roofline(self.batch("mmalign"), 3, 3, 2, quantity.bar, medians, ceilings)


def product_roofline(
    batch: int,
    products: int,
    peer_products: int,
    exponentials: int,
    bar: str,
    medians: Mapping[str, Mapping[str, float]],
    ceilings: Ceilings,
) -> str:
    """The least time that matrix products and exponentials take at the measured rates, over the peer's whole time."""
    operations = 2 * batch * batch * _DIM
    least = products * operations / ceilings.matmul_flops + exponentials * batch**2 / ceilings.exp_per_second
    peer = medians["open_clip"]["seconds"]
    return (
        f"{products} products of {operations / 1e9:.1f} GFLOP (the peer: {peer_products}) at the measured "
        f"{ceilings.matmul_flops / 1e9:.0f} GFLOP/s and {exponentials} · {batch}² exponentials at "
        f"{ceilings.exp_per_second / 1e9:.2f} G/s take {least:.2f} s, the peer takes {peer:.2f} s: where no tile of "
        f"similarities is kept, no ratio below {least / peer:.2f} is possible here; reached "
        f"{medians['mmalign']['seconds'] / peer:.2f}{verdict(least / peer, bar)}"
    )
