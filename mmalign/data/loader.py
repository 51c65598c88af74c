"""The loader of a stage: a stream with a position that is saved and restored."""

from collections.abc import Iterator
from typing import Any

from mmalign.batch import Batch
from mmalign.data.stream import Stream
from mmalign.data.workers import ordered


class StageLoader:
    """Yields the batches of a stream from `step` on; Lightning saves and restores its state with the checkpoint.

    It has a length, that of the whole stream: the state of a loader without one would be saved a batch ahead. The state
    does not depend on the rank, because Lightning gives that of rank 0 to all.

    Args:
        stream: what to load.
        workers: processes that read and decode; 0 does it in this one.
        prefetch: batches that each worker makes ahead of time.
        pin_memory: batches lie in memory from which a GPU copies while the process goes on.

    Attributes:
        step: the batches that were handed out; the next one is that of this step.
    """

    def __init__(self, stream: Stream, workers: int = 0, prefetch: int = 2, pin_memory: bool = False) -> None:
        self.stream = stream
        self.workers = workers
        self.prefetch = prefetch
        self.pin_memory = pin_memory
        self.step = 0

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Batch]:
        for batch in ordered(self.stream, range(self.step, len(self)), self.workers, self.prefetch):
            self.step += 1  # before the batch is handed out: what comes after a yield runs only with the next batch
            yield batch.pin_memory() if self.pin_memory else batch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "settings": self.stream.settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where the state was saved.

        Raises:
            ValueError: the stream is another one; the message names what differs.
        """
        differing = list(_differences(state["settings"], self.stream.settings))
        if differing:
            raise ValueError("the data differ from those of the checkpoint: " + "; ".join(differing))
        self.step = state["step"]


def _differences(saved: Any, current: Any, path: str = "") -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in sorted(saved.keys() | current.keys()):
            yield from _differences(saved.get(key), current.get(key), f"{path}.{key}" if path else str(key))
    elif _plain(saved) != _plain(current):
        yield f"{path} was {saved!r}, is {current!r}"


def _plain(value: Any) -> Any:
    """Tuples and lists are the same thing once they have been in a checkpoint."""
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
