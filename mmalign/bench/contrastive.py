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
        return product_roofline(batch, 4 - kept, 6, 2, 14, quantity.bar, medians, ceilings)


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
        return product_roofline(self.batch("mmalign"), 3, 3, 2, 11, quantity.bar, medians, ceilings)


def product_roofline(
    batch: int,
    products: float,
    peer_products: int,
    exponentials: int,
    passes: int,
    bar: str,
    medians: Mapping[str, Mapping[str, float]],
    ceilings: Ceilings,
) -> str:
    """The least time of the arithmetic at the measured rates, and with the passes over memory, over the peer's time.

    Args:
        passes: how often torch's operators read or write each similarity, one after the other.
    """
    operations = 2 * batch * batch * DIM
    least = products * operations / ceilings.matmul_flops + exponentials * batch**2 / ceilings.exp_per_second
    moved = 4 * passes * batch**2
    unfused = least + moved / ceilings.bytes_per_second
    peer = medians["open_clip"]["seconds"]
    return (
        f"{products:.3g} products of {operations / 1e9:.1f} GFLOP (the peer: {peer_products}) at the measured "
        f"{ceilings.matmul_flops / 1e9:.0f} GFLOP/s and {exponentials} · {batch}² exponentials at "
        f"{ceilings.exp_per_second / 1e9:.2f} G/s take {least:.2f} s, the peer takes {peer:.2f} s: where one tile of "
        f"similarities is kept, no ratio below {least / peer:.2f} is possible here, and none below "
        f"{unfused / peer:.2f} with operators that are not fused, which go over each similarity {passes} times: "
        f"{moved / 1e9:.1f} GB at {ceilings.bytes_per_second / 1e9:.0f} GB/s; reached "
        f"{medians['mmalign']['seconds'] / peer:.2f}{verdict(least / peer, bar)}"
    )
