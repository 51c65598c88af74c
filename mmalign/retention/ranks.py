"""What several processes of one training tell each other; without a process group, one process stands alone."""

from typing import Any

from torch import distributed


def world_size() -> int:
    return distributed.get_world_size() if _connected() else 1


def rank() -> int:
    return distributed.get_rank() if _connected() else 0


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()
