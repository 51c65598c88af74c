"""Every rank sees the embeddings of all ranks, and gradients find their way back.

A contrastive loss over ranks is exact when each rank holds all rows, sums over its own anchors only, divides by the
number of all anchors, and when each row's gradient is the sum of what all ranks found for it. `gather` does the first
and the last; losses do the rest by `Embeddings.rows`; `ddp_scale` undoes DistributedDataParallel's division.
"""

import zlib
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmalign.batch import Embeddings


def world_size() -> int:
    """Number of ranks; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(embeddings: Embeddings) -> Embeddings:
    """The rows of all ranks in the order of ranks, with `rows` naming this rank's. With one rank, its argument.

    `pooled` stays as it is: what reads it compares each row with itself, and it is as wide as the towers.

    Every rank must call it at the same point with as many rows and the same modalities of the same sizes, and run a
    backward pass if any does. Group numbers must mean the same on all ranks. Likelihoods, and the mark of replayed
    rows, may be missing where a rank has none.

    Raises:
        ValueError: ranks differ in number of rows, modalities or sizes; on all ranks, so that none waits for ever.
    """
    if world_size() == 1:
        return embeddings
    embeddings = _complete(embeddings)
    tables = {"vectors": embeddings.vectors, "likelihoods": embeddings.likelihoods}
    names = [(table, name) for table in tables for name in tables[table]]
    # One exchange for all: ranks whose losses use different parts would wait for each other in the backward pass.
    numbers = _side_by_side([tables[table][name] for table, name in names])
    layout = [f"{table} of {name} [{tables[table][name].shape[1]}]" for table, name in names]
    numbers = _agree(numbers, layout + list(embeddings.present))
    columns = _all_gather(numbers).split([tables[table][name].shape[1] for table, name in names], dim=1)
    for (table, name), rows in zip(names, columns, strict=True):
        tables[table] = tables[table] | {name: rows.to(tables[table][name].dtype)}

    assert embeddings.replayed is not None  # see _complete
    marks = torch.stack([embeddings.group, embeddings.replayed, *embeddings.present.values()], dim=1)
    group, replayed, *present = _all_gather(marks).unbind(1)
    start = dist.get_rank() * len(embeddings.group)
    return Embeddings(
        **tables,
        pooled=embeddings.pooled,
        group=group.contiguous(),
        replayed=replayed.bool(),
        present=dict(zip(embeddings.present, (rows.bool() for rows in present), strict=True)),
        rows=(start, start + len(embeddings.group)),
    )


def ddp_scale(loss: Tensor) -> Tensor:
    """What to call backward on: the rank's share of the loss times the number of ranks.

    The shares add up to the loss of the one big batch, but DistributedDataParallel averages gradients over ranks. This
    is the one place that makes up for it; log the sum of the shares, not this.
    """
    return loss * world_size()


def _complete(embeddings: Embeddings) -> Embeddings:
    """What a rank may leave out when it has no such rows, spelled out, and all names in one order."""
    rows = len(embeddings.group)
    nothing = torch.zeros(rows, 2, device=embeddings.group.device)
    nowhere = torch.zeros(rows, dtype=torch.bool, device=embeddings.group.device)
    return replace(
        embeddings,
        vectors=dict(sorted(embeddings.vectors.items())),
        present={name: embeddings.present[name] for name in sorted(embeddings.present)},
        likelihoods={name: embeddings.likelihoods.get(name, nothing) for name in sorted(embeddings.vectors)},
        replayed=nowhere if embeddings.replayed is None else embeddings.replayed,
    )


def _side_by_side(tables: list[Tensor]) -> Tensor:
    """One table [batch, columns of all], in a type that holds each of them exactly."""
    dtype = reduce(torch.promote_types, (table.dtype for table in tables), torch.float32)
    return torch.cat([table.to(dtype) for table in tables], dim=1)


def _agree(numbers: Tensor, layout: list[str]) -> Tensor:
    """Compare a few facts of all ranks before the real exchange, which would hang or mix up rows where they differ.

    Returns: the argument, as part of a graph if it is on any rank.
    """
    facts = [len(numbers), zlib.crc32(repr((layout, str(numbers.dtype))).encode()), int(numbers.requires_grad)]
    everyone = _all_gather(torch.tensor([facts], device=numbers.device))
    rows, layouts, in_graph = everyone.T.tolist()
    if len(set(rows)) > 1:
        raise ValueError(f"ranks hold different numbers of rows ({rows}); a global batch must divide evenly over ranks")
    if len(set(layouts)) > 1:
        raise ValueError(f"ranks differ in modalities, sizes or types; rank {dist.get_rank()} has {', '.join(layout)}")
    return numbers.requires_grad_() if any(in_graph) and not numbers.requires_grad else numbers


def _all_gather(rows: Tensor) -> Tensor:
    gathered: Tensor = _AllGather.apply(rows)
    return gathered


class _AllGather(torch.autograd.Function):
    """Rows of all ranks; in the backward pass each rank gets the sum of all ranks' gradients for its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        gathered = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = len(gradient) // world_size()
        if dist.get_backend() == "nccl":
            part = gradient.new_empty((own, *gradient.shape[1:]))
            dist.reduce_scatter_tensor(part, gradient.contiguous())
            return part
        total = gradient.clone(memory_format=torch.contiguous_format)  # the gradient that came in is not ours to change
        dist.all_reduce(total)
        return total[dist.get_rank() * own : (dist.get_rank() + 1) * own]
