"""Worker processes that make items of a data set ahead of time, in order."""

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

_SECONDS_AFTER_SIGTERM = 30


def ordered(dataset: Dataset, items: Sequence[int], workers: int, prefetch: int = 2) -> Iterator[Any]:
    """`dataset[i]` for every i of `items`, in their order; workers make up to `prefetch` items each ahead of time.

    Touches no global random generator: whether there are workers must not change what the training draws.

    Raises:
        RuntimeError: a worker was killed.
    """
    loader: DataLoader = DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(0),
    )
    iterator = iter(loader)
    for number in range(len(items)):
        try:
            item = next(iterator)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise RuntimeError(
                f"a data worker was killed before item {items[number]}; the usual reason is memory: use fewer workers "
                f"or a smaller batch, and see the system's log ({error})"
            ) from error
        yield item


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A scheduler that ends a job sends SIGTERM to the workers too, but the training still wants to finish its step and
    # save. So a worker lives on for a while, unless its parent, which stops it in another way, is gone.
    parent = os.getppid()

    def later(*_: Any) -> None:
        if os.getppid() != parent:
            os._exit(0)
        signal.alarm(_SECONDS_AFTER_SIGTERM)

    signal.signal(signal.SIGTERM, later)
