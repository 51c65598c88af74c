"""Gradient caching against the plain batch."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from mmalign.batch import Batch, Values
from mmalign.bench.base import Benchmark, Outcome, Quantity
from mmalign.bench.material import clip_name, write_clip
from mmalign.bench.training import towers

_BATCH = 2048
_CHUNK = 64
_PEER = "the plain batch"


class GradientCaching(Benchmark):
    """One step's forward and backward pass over all parameters, as `runtime.chunk_size` does it.

    glibc keeps of what is freed between chunks now 40 and now 380 MiB. With a fixed threshold it gives all large blocks
    back, on both sides alike; without, the chunks' peak says more about it than about them.
    """

    name = "gradient-caching"
    title = "one step of batch 2,048 in chunks of 64, ViT and text tower of width 128, 4 layers"
    sides = ("plain", "chunked")
    environment: ClassVar = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    quantities = (
        Quantity("peak memory", "bytes", "chunked", "plain", _PEER, "<= 0.125", unit="bytes"),
        Quantity("time", "seconds", "chunked", "plain", _PEER, "<= 1.6"),
        Quantity("difference of the gradients", "gradients", "chunked", "plain", _PEER, "<= 1e-6", "relative"),
    )

    def prepare(self) -> None:
        write_clip(self.folder / "model", 128, 4, 128, 4, context=16)

    def load(self, side: str) -> Callable[[], Outcome]:
        from mmalign.losses.infonce import InfoNCE
        from mmalign.model import Aligner
        from mmalign.training.chunking import chunked

        torch.set_flush_denormal(True)
        model = Aligner(towers(clip_name(self.folder / "model")), dim=128)
        loss = InfoNCE("image", "text")
        size = self.settings.size(_BATCH, _CHUNK, 2 * _CHUNK)
        chunk = _CHUNK if side == "chunked" else None

        def step(batch: Batch) -> None:
            loss(chunked(model, batch, chunk)).backward()

        step(_batch(16))
        for parameter in [*model.parameters(), *loss.parameters()]:
            if parameter.grad is not None:
                parameter.grad.zero_()  # the gradients' own memory belongs to both sides, and counts for neither
        batch = _batch(size)

        def run() -> Outcome:
            step(batch)
            return Outcome()

        return lambda: _with_gradients(run, model)


def _with_gradients(run: Callable[[], Outcome], model: torch.nn.Module) -> Outcome:
    from time import perf_counter

    started = perf_counter()
    run()
    seconds = perf_counter() - started
    # the table of all tokens is mostly zeros, and most of the numbers
    found = [p.grad for name, p in model.named_parameters() if p.grad is not None and "token_embedding" not in name]
    flat = torch.cat([gradient.flatten() for gradient in found])
    return Outcome(seconds, arrays={"gradients": flat.numpy()})


def _batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    present = torch.ones(size, dtype=torch.bool)
    words = torch.randint(1, 40_000, (size, 16), generator=generator)
    words[:, -1] = 49407  # the end of a text, where open_clip's text towers pool
    values: dict[str, Any] = {
        "image": Values(present, torch.randn(size, 3, 64, 64, generator=generator)),
        "text": Values(present, words),
    }
    return Batch([str(i) for i in range(size)], values, torch.arange(size))
