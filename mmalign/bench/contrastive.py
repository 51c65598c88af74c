"""The contrastive losses, forward and backward, against open_clip's and against themselves at four times the batch."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch.nn import functional as F

from mmalign.bench.base import Benchmark, Ceilings, Outcome, Quantity
from mmalign.bench.loss_step import DIM, PEERS, LossName, loss_step
from mmalign.bench.ratios import verdict
from mmalign.losses.tiles import KEPT_TILES, add_product, product, tile_shape, tiles
from mmalign.training.ceiling import timed

_BATCH = 8192
_BARE = "products"
_LOSSES = {"infonce": "open_clip ClipLoss", "siglip": "open_clip SigLipLoss"}


class _Contrast(Benchmark):
    """Unit vectors of two modalities -> loss and gradients.

    Attributes:
        repeats: steps in a process of which the median counts.
    """

    loss: ClassVar[LossName] = "infonce"
    repeats: ClassVar[int] = 3

    def batch(self, side: str) -> int:
        return self.settings.size(_BATCH, multiple=8, least=32)

    def load(self, side: str) -> Callable[[], Outcome]:
        if side == _BARE:
            bare = bare_products(self.batch(side))
            bare()
            return lambda: Outcome(statistics.median(timed(bare) for _ in range(self.repeats)))
        peer = side if side in PEERS else None
        loss_step(64, self.loss, peer)()
        step = loss_step(self.batch(side), self.loss, peer)
        return lambda: step.steady(self.repeats)


def _quantities(peer: str, time_bar: str, memory_bar: str) -> tuple[Quantity, ...]:
    return (
        Quantity("time", "seconds", "mmalign", "open_clip", peer, time_bar),
        Quantity("peak memory", "bytes", "mmalign", "open_clip", peer, memory_bar, unit="bytes"),
        Quantity("difference of the loss", "loss", "mmalign", "open_clip", peer, "<= 1e-6", "relative"),
        Quantity("difference of the gradients", "gradient", "mmalign", "open_clip", peer, "<= 1e-5", "relative"),
    )


class InfoNCEAgainstOpenClip(_Contrast):
    """Both keep fp32; the peer holds two B × B matrices and more, mmalign a few tiles."""

    name = "infonce"
    title = "InfoNCE, forward and backward, 8,192 × 512"
    sides = ("open_clip", "mmalign", _BARE)
    pairs = 9
    needs: ClassVar = {"open_clip": ("open_clip",)}
    quantities = _quantities(_LOSSES["infonce"], "<= 0.4", "<= 0.125")

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        """Over the peer's time: that of the products alone, with the exponentials at the measured rate, and with what
        goes over memory besides, each similarity forth and back in the forward and in the backward pass."""
        if quantity.label != "time":
            return ""
        batch = self.batch("mmalign")
        twice = 1 - _kept(batch) / batch**2
        ours, peer, bare = (medians[side]["seconds"] for side in ("mmalign", "open_clip", _BARE))
        rate = (3 + twice) * 2 * batch**2 * DIM / bare
        least = bare + (1 + twice) * batch**2 / ceilings.exp_per_second
        moved = 4 * 4 * batch**2
        unfused = least + moved / ceilings.bytes_per_second
        return (
            f"the {3 + twice:.3g} products alone, in the same tiles, take {bare:.3f} s, {rate / 1e9:.0f} GFLOP/s where "
            f"one large product reached {ceilings.matmul_flops / 1e9:.0f}, and {1 + twice:.3g} · {batch}² exponentials "
            f"at {ceilings.exp_per_second / 1e9:.2f} G/s take {least - bare:.3f} s; the peer, with 6 products, takes "
            f"{peer:.3f} s: with these products no ratio below {least / peer:.3f} is possible here; operators that are "
            f"not fused move {moved / 1e9:.1f} GB besides, which at {ceilings.bytes_per_second / 1e9:.0f} GB/s makes "
            f"it {unfused / peer:.3f}; reached {ours / peer:.3f}"
            f"{verdict(least / peer, quantity.bar, unfused / peer)}"
        )


class InfoNCEGrowth(_Contrast):
    """Four times the batch: sixteen times the operations, four times the memory of the gradients."""

    name = "infonce-32768"
    title = "InfoNCE, forward and backward, 32,768 × 512"
    sides = ("8192", "32768")
    repeats = 1
    quantities = (
        Quantity("peak memory", "bytes", "32768", "8192", "itself at 8,192", "<= 3", unit="bytes"),
        Quantity("time", "seconds", "32768", "8192", "itself at 8,192", "<= 18"),
    )

    def batch(self, side: str) -> int:
        return self.settings.size(int(side), multiple=8, least=32)

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.measure != "bytes":
            return ""
        gradients = 2 * 4 * DIM
        small, large = (gradients * batch + 4 * _kept(batch) for batch in map(self.batch, self.sides))
        return (
            f"{gradients} bytes of gradients a row, which the caller gets, and the tiles that are kept make "
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


def _kept(batch: int) -> int:
    """Similarities that InfoNCE keeps for the backward pass, in float32 on a CPU."""
    return min(batch**2, KEPT_TILES["cpu"] * math.prod(tile_shape(batch, batch, torch.float32, torch.device("cpu"))))


def bare_products(batch: int) -> Callable[[], None]:
    """The matrix products of InfoNCE and its gradients, in the same tiles, and nothing else."""
    x, y = F.normalize(torch.randn(2, batch, DIM), dim=2).unbind()
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    covering = tiles(batch, batch, x.dtype, x.device)
    twice = len(covering) - KEPT_TILES["cpu"]

    def run() -> None:
        for number, tile in enumerate(covering):
            band, other = x[tile.top : tile.bottom], y[tile.left : tile.right]
            for _ in range(2 if number < twice else 1):
                product(band, other.T, 1.0, tile)
            add_product(grad_x[tile.top : tile.bottom], tile.values, other)
            add_product(grad_y[tile.left : tile.right], tile.values.T, band)

    return run
