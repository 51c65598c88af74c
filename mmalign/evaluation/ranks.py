"""The work of an evaluation over several processes: each does its share, all get everything."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

Part = TypeVar("Part")


def rank_and_world() -> tuple[int, int]:
    """(number of this process, number of processes); (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_objects(part: Part) -> list[Part]:
    """The parts of all ranks, in the order of ranks, on every rank. Tensors in them should be on the CPU."""
    _, world = rank_and_world()
    if world == 1:
        return [part]
    parts: list[Part | None] = [None] * world
    dist.all_gather_object(parts, part)
    return parts  # type: ignore[return-value]


def first_rank_first(make: Callable[[], Part]) -> Part:
    """`make()` on rank 0, then on the others: for files that the first call writes and the others find."""
    rank, _ = rank_and_world()
    made = [make()] if rank == 0 else []
    gather_objects(None)
    return made[0] if made else make()
