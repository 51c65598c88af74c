"""Time and memory of the parts that grow, at four sizes each, and the exponent of their growth."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmalign.bench.base import Benchmark, Outcome, Settings
from mmalign.bench.run import run_side
from mmalign.bench.worker import PREPARE

_REPEATS = 3
MEMORY_FLOOR_MIB = 1.0
"""Less than this is the allocator's noise, and counts as this much."""


class Growing(Benchmark):
    """A benchmark whose sides are its sizes.

    Attributes:
        unit: of the sizes.
        expected: exponents of time and of memory that the design promises; memory of 0 means bounded.
    """

    sizes: ClassVar[tuple[int, ...]]
    unit: ClassVar[str]
    expected: ClassVar[tuple[float, float]]
    quantities = ()

    def size_of(self, side: str) -> int:
        return self.settings.size(int(side), 64, 64)


class LossGrowth(Growing):
    name, title, unit, expected = "loss", "InfoNCE, forward and backward, 512 channels", "rows", (2, 1)
    sizes = (4096, 8192, 16384, 32768)

    def load(self, side: str) -> Callable[[], Outcome]:
        from mmalign.bench.loss_step import loss_step

        loss_step(64)()
        return loss_step(self.size_of(side))


class RetrievalGrowth(Growing):
    name, title, unit, expected = "retrieval", "ranks of n queries among n items, 512 channels", "items", (2, 1)
    sizes = (5000, 10000, 20000, 40000)

    def load(self, side: str) -> Callable[[], Outcome]:
        from mmalign.bench.retrieval import material, ranks

        ranks(*material(256, 256))
        inputs = material(self.size_of(side), self.size_of(side))
        return lambda: ranks(*inputs)


class _Shards(Growing):
    unit = "samples"
    sizes = (1000, 2000, 4000, 8000)

    def prepare(self) -> None:
        from mmalign.bench.material import write_pictures

        for size in self.sizes:
            write_pictures(self.folder / str(size), self.size_of(str(size)), 32)

    def _pictures(self, side: str) -> Any:
        from mmalign.data.config import ShardData

        return ShardData(str(self.folder / side), modalities={"image": "png"})


class StreamGrowth(_Shards):
    name, title, expected = "stream", "one epoch of small pictures, decoded in this process", (1, 0)

    def load(self, side: str) -> Callable[[], Outcome]:
        from mmalign.data.stream import Stream
        from mmalign.encoders.image import ImagePreprocess

        steps = self.size_of(side) // 64
        stream = Stream({"data": (self._pictures(side), 1.0)}, {"image": ImagePreprocess(32)}, 64, 0, "main", steps)
        stream[0]

        def run() -> Outcome:
            for step in range(steps):
                stream[step]
            return Outcome()

        return run


class CacheGrowth(_Shards):
    name, title, expected = "cache", "features of a small frozen tower, computed and merged", (1, 1)

    def load(self, side: str) -> Callable[[], Outcome]:
        from mmalign.data.precompute import open_or_build
        from mmalign.encoders.image import ImageTimm

        options = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
        tower = ImageTimm("vit_tiny_patch16_224", size=32, options=options)

        def run() -> Outcome:
            with tempfile.TemporaryDirectory() as folder:
                open_or_build(self._pictures(side), "image", tower, directory=Path(folder), progress=False)
            return Outcome()

        return run


class ReplayGrowth(Growing):
    name, title, unit, expected = "replay memory", "index of n samples that saw 4 n candidates", "capacity", (1, 1)
    sizes = (25_000, 50_000, 100_000, 200_000)

    def load(self, side: str) -> Callable[[], Outcome]:
        from mmalign.retention.policies import ENTRY, Uniform
        from mmalign.retention.pool import Pool

        capacity, batch = self.size_of(side), 256

        def run() -> Outcome:
            generator = np.random.default_rng(0)
            pool = Pool(capacity, Uniform())
            for _ in range(4 * capacity // batch):
                entries = np.zeros(batch, ENTRY)
                entries["hash"] = generator.integers(0, 2**63, batch, dtype=np.uint64)
                pool.add(entries)
            assert len(pool.entries) == capacity
            return Outcome()

        return run


TASKS: tuple[type[Growing], ...] = (LossGrowth, RetrievalGrowth, StreamGrowth, CacheGrowth, ReplayGrowth)
for _task in TASKS:
    _task.sides = tuple(str(size) for size in _task.sizes)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the logarithms by least squares: k where values grow as size^k."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.maximum(np.asarray(values, float), 1e-12))
    return float(np.polyfit(x, y, 1)[0])


def measure_growth(settings: Settings) -> list[dict[str, Any]]:
    """Every task at every size, the median of three runs, each in a process of its own, sizes in turn."""
    found = []
    for task in TASKS:
        print(f"\ngrowth of {task.name}: {task.title}", flush=True)
        place = f"{task.__module__}:{task.__name__}"
        with tempfile.TemporaryDirectory(prefix="mmalign-bench-") as text:
            folder = Path(text)
            run_side(place, PREPARE, settings, folder)
            turns = [[run_side(place, side, settings, folder).measures for side in task.sides] for _ in range(_REPEATS)]
        found.append(_fitted(task, settings, turns))
    return found


def _fitted(task: type[Growing], settings: Settings, turns: list[list[dict[str, float]]]) -> dict[str, Any]:
    shape = task(settings, Path())
    sizes = [shape.size_of(side) for side in task.sides]
    seconds, peaks = (
        [statistics.median(turn[i][measure] for turn in turns) for i in range(len(sizes))]
        for measure in ("seconds", "bytes")
    )
    return {
        "task": task.name,
        "title": task.title,
        "unit": task.unit,
        "sizes": sizes,
        "seconds": seconds,
        "bytes": peaks,
        "time_exponent": exponent(sizes, seconds),
        "memory_exponent": exponent(sizes, [max(peak / 2**20, MEMORY_FLOOR_MIB) for peak in peaks]),
        "expected_time_exponent": task.expected[0],
        "expected_memory_exponent": task.expected[1],
    }


def print_growth(growth: list[dict[str, Any]]) -> None:
    print(f"\n  {'':<16} {'sizes':<32} {'time ~ n^':>10} {'memory ~ n^':>12}")
    for entry in growth:
        sizes = " ".join(f"{size:,}" for size in entry["sizes"])
        print(f"  {entry['task']:<16} {sizes:<32} {entry['time_exponent']:>10.2f} {entry['memory_exponent']:>12.2f}")
