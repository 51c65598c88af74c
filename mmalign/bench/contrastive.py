"""The contrastive losses, forward and backward, against open_clip's and against themselves at four times the batch."""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from mmalign.bench.base import Benchmark, Ceilings, Outcome, Quantity
from mmalign.bench.loss_step import DIM, PEERS, LossName, loss_step
from mmalign.bench.ratios import verdict
from mmalign.losses.tiles import tile_shape

_BATCH = 8192
_LOSSES = {"infonce": "open_clip ClipLoss", "siglip": "open_clip SigLipLoss"}


class _Contrast(Benchmark):
    """Unit vectors of two modalities -> loss and gradients."""

    loss: ClassVar[LossName] = "infonce"

    def batch(self, side: str) -> int:
        return self.settings.size(_BATCH, multiple=8, least=32)

    def load(self, side: str) -> Callable[[], Outcome]:
        peer = side if side in PEERS else None
        loss_step(64, self.loss, peer)()
        return loss_step(self.batch(side), self.loss, peer)


def _quantities(peer: str, time_bar: str, memory_bar: str) -> tuple[Quantity, ...]:
    return (
        Quantity("time", "seconds", "mmalign", "open_clip", peer, time_bar),
        Quantity("peak memory", "bytes", "mmalign", "open_clip", peer, memory_bar, unit="bytes"),
        Quantity("difference of the loss", "loss", "mmalign", "open_clip", peer, "<= 1e-6", "relative"),
        Quantity("difference of the gradients", "gradient", "mmalign", "open_clip", peer, "<= 1e-5", "relative"),
    )


class InfoNCEAgainstOpenClip(_Contrast):
    """Both keep fp32; the peer holds two B × B matrices and more, mmalign one tile."""

    name = "infonce"
    title = "InfoNCE, forward and backward, 8,192 × 512"
    sides = ("open_clip", "mmalign")
    needs: ClassVar = {"open_clip": ("open_clip",)}
    quantities = _quantities(_LOSSES["infonce"], "<= 0.4", "<= 0.125")

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.label != "time":
            return ""
        batch = self.batch("mmalign")
        kept = math.prod(tile_shape(batch, batch, torch.float32, torch.device("cpu"))) / batch**2
        return product_roofline(batch, quantity.bar, medians, ceilings, products=4 - kept, peer_products=6, passes=8)


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
        gradients, tile = 2 * 4 * DIM, 16 * 2**20
        small, large = (gradients * self.batch(side) + tile for side in self.sides)
        return (
            f"{gradients} bytes of gradients a row, which the caller gets, and a tile of 16 MiB make "
            f"{small / 2**20:.0f} and {large / 2**20:.0f} MiB, a ratio of {large / small:.2f}; without tiles it is 4"
        )


class SigLIPAgainstOpenClip(_Contrast):
    """As InfoNCE; every pair's gradient is known when its loss is, so nothing is computed twice."""

    name = "siglip"
    title = "SigLIP, forward and backward, 8,192 × 512"
    sides = ("open_clip", "mmalign")
    needs: ClassVar = {"open_clip": ("open_clip",)}
    loss: ClassVar[LossName] = "siglip"
    quantities = _quantities(_LOSSES["siglip"], "<= 0.7", "<= 0.16666667")

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.label != "time":
            return ""
        batch = self.batch("mmalign")
        return product_roofline(batch, quantity.bar, medians, ceilings, products=3, peer_products=3, passes=7)


def product_roofline(
    batch: int,
    bar: str,
    medians: Mapping[str, Mapping[str, float]],
    ceilings: Ceilings,
    *,
    products: float,
    peer_products: int,
    passes: int,
) -> str:
    """The least time of the arithmetic at the measured rates, and with the passes over memory, over the peer's time.

    Args:
        products: of [batch, DIM] by [DIM, batch]; beside them two exponentials for each similarity.
        passes: how often each similarity is read or written beyond the cores' own caches: by the products that make and
            use it, and once each way for all that is done to a strip.
    """
    operations = 2 * batch * batch * DIM
    least = products * operations / ceilings.matmul_flops + 2 * batch**2 / ceilings.exp_per_second
    moved = 4 * passes * batch**2
    unfused = least + moved / ceilings.bytes_per_second
    peer = medians["open_clip"]["seconds"]
    return (
        f"{products:.3g} products of {operations / 1e9:.1f} GFLOP (the peer: {peer_products}) at the measured "
        f"{ceilings.matmul_flops / 1e9:.0f} GFLOP/s and 2 · {batch}² exponentials at "
        f"{ceilings.exp_per_second / 1e9:.2f} G/s take {least:.2f} s, the peer takes {peer:.2f} s: where one tile of "
        f"similarities is kept, no ratio below {least / peer:.2f} is possible here; operators that are "
        f"not fused go over each similarity {passes} times, {moved / 1e9:.1f} GB at "
        f"{ceilings.bytes_per_second / 1e9:.0f} GB/s, which makes it {unfused / peer:.2f}; reached "
        f"{medians['mmalign']['seconds'] / peer:.2f}{verdict(least / peer, bar)}"
    )
