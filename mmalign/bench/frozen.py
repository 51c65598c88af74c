"""Training heads on two frozen towers, with and without their outputs in the cache."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mmalign.bench.base import Benchmark, Outcome, Quantity
from mmalign.bench.material import clip_name, write_clip, write_pictures
from mmalign.bench.training import pictures, towers

_BATCH = 64
_STEPS = 10
_PEER = "itself, computing both towers"


class FrozenTowers(Benchmark):
    """The same stream, batches and projections; only where the towers' outputs come from differs.

    Building the cache, once, is not in the time: it costs one forward pass over the data.
    """

    name = "frozen-towers"
    title = "10 steps of two heads on frozen ViT-S/16 and text towers, batch 64, decoding included"
    sides = ("recompute", "cached")
    quantities = (
        Quantity("samples per second", "rate", "cached", "recompute", _PEER, ">= 20", unit="/s"),
        Quantity(
            "difference of the loss curve", "losses", "cached", "recompute", _PEER, "<= 1e-5",
            "absolute",
        ),
    )  # fmt: skip

    @property
    def batch(self) -> int:
        return self.settings.size(_BATCH, least=16)

    def prepare(self) -> None:
        width, layers = (384, 12) if self.settings.scale >= 0.5 else (128, 4)
        write_clip(self.folder / "model", width, layers, width * 2 // 3 // 64 * 64, layers // 2)
        write_pictures(self.folder / "shards", self.batch * _STEPS, 64)
        self._caches(towers(clip_name(self.folder / "model")))

    def _caches(self, encoders: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Built by `prepare`, found by `load`."""
        from mmalign.data.precompute import open_or_build

        data = pictures(self.folder / "shards")
        return {
            "pictures": {name: open_or_build(data, name, tower, progress=False) for name, tower in encoders.items()}
        }

    def load(self, side: str) -> Callable[[], Outcome]:
        import torch

        from mmalign.data.loader import StageLoader
        from mmalign.data.stream import Stream
        from mmalign.losses.infonce import InfoNCE
        from mmalign.model import Aligner

        torch.set_flush_denormal(True)
        encoders = towers(clip_name(self.folder / "model"))
        features = self._caches(encoders) if side == "cached" else None
        model = Aligner(encoders, dim=128)
        model.encoders.requires_grad_(False).eval()
        loss = InfoNCE("image", "text")
        optimizer = torch.optim.AdamW([*model.projections.parameters(), *loss.parameters()], lr=1e-3)
        preprocess = {name: tower.preprocess for name, tower in encoders.items()}
        sources = {"pictures": (pictures(self.folder / "shards"), 1.0)}
        loader = StageLoader(Stream(sources, preprocess, self.batch, 0, "main", _STEPS, features=features))

        def run() -> Outcome:
            losses = []
            for batch in loader:
                value = loss(model(batch))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                losses.append(float(value.detach()))
            return Outcome(arrays={"losses": np.array(losses)})

        return lambda: _timed(run, self.batch)


def _timed(run: Callable[[], Outcome], batch: int) -> Outcome:
    from time import perf_counter

    started = perf_counter()
    outcome = run()
    seconds = perf_counter() - started
    return Outcome(seconds, {"rate": batch * _STEPS / seconds}, outcome.arrays)
