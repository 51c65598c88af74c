"""Search through an approximate index against exact search, and what the index finds of it."""

import time
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.bench.base import Benchmark, Outcome, Quantity
from mmalign.evaluation.search import Gallery, default_index

_DIM = 512
_TOP = 10
_INNER_DIM, _CLUSTER_ITEMS = 48, 100


class ApproximateSearch(Benchmark):
    """The index that `mmalign search --index auto` takes; building it (a few seconds) is not in the time."""

    name = "search"
    title = "the ten best of 100,000 items for 1,000 queries, 512 channels"
    sides = ("exact", "index")
    needs: ClassVar = {"index": ("faiss",)}
    quantities = (
        Quantity("time of the search", "seconds", "index", "exact", "exact search in tiles", "<= 0.2"),
        Quantity("recall@10 of the index", "recall", "index", None, "–", ">= 0.9", unit=""),
    )

    def load(self, side: str) -> Callable[[], Outcome]:
        items, queries = material(self.settings.size(100_000), self.settings.size(1_000))
        gallery = Gallery(items, [""] * len(items), default_index(len(items)) if side == "index" else None)
        gallery.search(queries[:32], _TOP)
        return lambda: search(gallery, queries)


def material(items: int, queries: int) -> tuple[Tensor, Tensor]:
    """Unit vectors in overlapping clusters of about 100, all in 48 dimensions, and queries out of the same clusters."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(-(-items // _CLUSTER_ITEMS), _INNER_DIM, generator=generator)
    outwards = torch.randn(_INNER_DIM, _DIM, generator=generator)

    def draw(count: int) -> Tensor:
        cluster = torch.randint(len(centres), (count,), generator=generator)
        inner = centres[cluster] + 0.7 * torch.randn(count, _INNER_DIM, generator=generator)
        return F.normalize(inner @ outwards, dim=1)

    return draw(items), draw(queries)


def search(gallery: Gallery, queries: Tensor) -> Outcome:
    """Searches, and compares with exact search afterwards, which is not in the time."""
    started = time.perf_counter()
    gallery.search(queries, _TOP)
    elapsed = time.perf_counter() - started
    return Outcome(elapsed, {"recall": gallery.recall(_TOP, queries).share})
