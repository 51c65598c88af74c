"""Worker processes that make items of a data set ahead of time, in order."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

_MOST_WORKERS = 8
_SAMPLES_PER_WORKER = 512
_SECONDS_AFTER_SIGTERM = 30
_SECONDS_UNTIL_REAPED = 0.5


def workers_per_process(processes: int = 1) -> int:
    """How many workers each of so many training processes on this machine should have: its share of the cores that this
    process may use, less one that trains; at least 1 and at most 8.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // max(processes, 1) - 1, 1), _MOST_WORKERS)


def worth_starting(workers: int, samples: int) -> int:
    """At most one worker for every 512 samples: it takes about as long to start as these to read and decode."""
    return min(workers, samples // _SAMPLES_PER_WORKER)


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
    _deaths.watch()
    for item in items:
        try:
            value = _deaths.during(lambda: next(iterator))
        except Exception as error:
            # A worker that dies while it hands something over shows as a broken connection, before its end is known.
            if isinstance(error, EOFError | ConnectionError):
                time.sleep(_SECONDS_UNTIL_REAPED)
            if not any(process.exitcode for process in getattr(iterator, "_workers", ())):
                raise
            raise RuntimeError(
                f"a data worker was killed before item {item} was there; the usual reason is memory: use fewer workers "
                f"or a smaller batch, and see the system's log ({error})"
            ) from error
        yield value


class _Deaths:
    """Makes torch report the death of a worker where its item is waited for, and nowhere else.

    Torch raises it from a signal handler, at whatever line the training has reached; that line may be the one that
    writes a checkpoint.
    """

    def __init__(self) -> None:
        self.report: Callable[..., Any] | None = None
        self.waiting = self.pending = False

    def watch(self) -> None:
        """Take the place of torch's handler, which it installs with the first worker."""
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self.handle:
            self.report = handler
            signal.signal(signal.SIGCHLD, self.handle)

    def handle(self, number: int, frame: Any) -> None:
        if self.waiting and self.report is not None:
            self.report(number, frame)
        else:
            self.pending = True

    def during(self, wait: Callable[[], Any]) -> Any:
        self.waiting = True
        try:
            if self.pending and self.report is not None:
                self.pending = False
                self.report(signal.SIGCHLD, None)
            return wait()
        finally:
            self.waiting = False


_deaths = _Deaths()


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the training decides
