"""Ranks of retrieval against the bare matrix product, and against clip_benchmark's recall."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.bench.base import Benchmark, Ceilings, Outcome, Quantity
from mmalign.bench.ratios import verdict
from mmalign.evaluation.retrieval_metrics import rank_queries

_DIM = 512
_TILE = 2048
_RECALLS = (1, 5, 10)


class _Ranks(Benchmark):
    pictures = 50_000
    captions = 50_000

    def load(self, side: str) -> Callable[[], Outcome]:
        divide = 5 if side.endswith("small") else 1
        pictures, captions = (self.settings.size(n // divide, 128, 128) for n in (self.pictures, self.captions))
        queries, gallery, query_group, gallery_group = material(pictures, captions)
        run = {"matmul": bare, "clip_benchmark-small": clip_benchmark}.get(side, ranks)
        run(*material(256, 256))
        return lambda: run(queries, gallery, query_group, gallery_group)

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.other != "matmul":
            return ""
        pictures, captions = (self.settings.size(n, 128, 128) for n in (self.pictures, self.captions))
        moved = 4 * pictures * captions + 3 * 4 * _DIM * (pictures + captions)
        product, passes = medians["matmul"]["seconds"], moved / ceilings.bytes_per_second
        least = 1 + passes / product
        return (
            f"the products take {product:.2f} s; each score is then read once more, and all vectors are copied in the "
            f"order of their groups and normalised: {moved / 1e9:.1f} GB, {passes:.2f} s at the measured "
            f"{ceilings.bytes_per_second / 1e9:.0f} GB/s, so that no ratio below {least:.2f} is possible where neither "
            f"stays in the cache{verdict(least, quantity.bar)}"
        )


class Captions(_Ranks):
    """Five captions a picture: pictures ask for captions. The peer's full matrices only fit at a smaller size."""

    name = "retrieval"
    title = "ranks and AP@10 of 5,000 pictures among 25,000 captions, 512 channels"
    pictures, captions = 5_000, 25_000
    pairs = 9
    sides = ("matmul", "mmalign", "clip_benchmark-small", "mmalign-small")
    needs: ClassVar = {"clip_benchmark-small": ("clip_benchmark",)}
    quantities = (
        Quantity("time", "seconds", "mmalign", "matmul", "the bare matrix product", "<= 1.3"),
        Quantity(
            "difference of R@1, R@5, R@10 (a fifth of the size)", "recalls", "mmalign-small", "clip_benchmark-small",
            "clip_benchmark", "<= 0", "absolute",
        ),
        Quantity(
            "time (a fifth of the size)", "seconds", "mmalign-small", "clip_benchmark-small", "clip_benchmark", "<= 1"
        ),
    )  # fmt: skip


class Square(_Ranks):
    """One caption a picture."""

    name = "retrieval-50000"
    title = "ranks and AP@10 of 50,000 pictures among 50,000 captions, 512 channels"
    sides = ("matmul", "mmalign")
    quantities = (
        Quantity("time", "seconds", "mmalign", "matmul", "the bare matrix product", "<= 1.3"),
        Quantity("peak memory, GiB", "gibibytes", "mmalign", None, "–", "<= 1", unit="GiB"),
    )

    def load(self, side: str) -> Callable[[], Outcome]:
        from mmalign.bench.memory import PeakMemory

        run = super().load(side)

        def measured() -> Outcome:
            memory = PeakMemory()
            outcome = run()
            outcome.values["gibibytes"] = memory.bytes() / 2**30
            return outcome

        return measured


def material(pictures: int, captions: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures and captions that mostly find each other: vectors and groups of both."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(pictures, _DIM, generator=generator)
    group = torch.arange(captions) % pictures
    gallery = torch.empty(captions, _DIM)
    for part, rows in zip(gallery.split(4096), group.split(4096), strict=True):  # no second copy of everything
        part.copy_(queries[rows]).add_(torch.randn(len(part), _DIM, generator=generator), alpha=4.0)
    return queries, gallery, torch.arange(pictures), group


def ranks(queries: Tensor, gallery: Tensor, query_group: Tensor, gallery_group: Tensor) -> Outcome:
    found = rank_queries(queries, gallery, query_group, gallery_group)
    recalls = [float((found.best_rank <= k).double().mean()) for k in _RECALLS]
    return Outcome(arrays={"recalls": np.array(recalls)})


def bare(queries: Tensor, gallery: Tensor, query_group: Tensor, gallery_group: Tensor) -> Outcome:
    """The scores alone, in tiles of the same size."""
    out = torch.empty(_TILE * _TILE)
    for rows in queries.split(_TILE):
        for columns in gallery.split(_TILE):
            torch.mm(rows, columns.T, out=out[: len(rows) * len(columns)].view(len(rows), len(columns)))
    return Outcome()


def clip_benchmark(queries: Tensor, gallery: Tensor, query_group: Tensor, gallery_group: Tensor) -> Outcome:
    """As its `evaluate` does it, from the embeddings on, for pictures that ask for captions."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = F.normalize(gallery, dim=1) @ F.normalize(queries, dim=1).T
    pairs = torch.zeros_like(scores, dtype=torch.bool)
    pairs[torch.arange(len(scores)), gallery_group] = True
    recalls = [float((batchify(recall_at_k, scores.T, pairs.T, 64, "cpu", k=k) > 0).double().mean()) for k in _RECALLS]
    return Outcome(arrays={"recalls": np.array(recalls)})
