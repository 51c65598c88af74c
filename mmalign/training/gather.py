"""Every rank sees the embeddings of all ranks, and gradients find their way back.

A contrastive loss over ranks is exact when each rank holds all rows, sums over its own anchors only, divides by the number
of all anchors, and when each row's gradient is the sum of what all ranks found for it. `gather` does the first and the last;
losses do the rest by `Embeddings.rows`; `ddp_scale` undoes the division that DistributedDataParallel makes afterwards.
"""

import zlib
from dataclasses import replace
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

    Every rank must call it at the same point with as many rows, the same modalities and the same sizes.
    The group numbers must mean the same on all ranks.

    Raises:
        ValueError: ranks differ in number of rows, modalities or sizes; on all ranks, so that none waits for ever.
    """
    if world_size() == 1:
        return embeddings
    _refuse_unequal(embeddings)
    batch = len(embeddings.group)
    start = dist.get_rank() * batch

    def all_ranks(rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: gather_rows(rows[name]) for name in sorted(rows)}

    return replace(
        embeddings,
        vectors=all_ranks(embeddings.vectors),
        present=all_ranks(embeddings.present),
        group=gather_rows(embeddings.group),
        likelihoods=all_ranks(embeddings.likelihoods),
        pooled=all_ranks(embeddings.pooled),
        rows=(start, start + batch),
    )


def gather_rows(rows: Tensor) -> Tensor:
    """All ranks' rows, in the order of ranks; differentiable where `rows` is. With one rank, its argument."""
    if world_size() == 1:
        return rows
    if rows.dtype == torch.bool:  # not every backend moves booleans
        return gather_rows(rows.to(torch.uint8)).bool()
    gathered: Tensor = _AllGather.apply(rows)
    return gathered


def ddp_scale(loss: Tensor) -> Tensor:
    """What to call backward on: the rank's share of the loss times the number of ranks.

    The shares add up to the loss of the one big batch, but DistributedDataParallel averages gradients over ranks. This is
    the one place that makes up for it; log the sum of the shares, not this.
    """
    return loss * world_size()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        gathered = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = len(gradient) // world_size()
        total = gradient.contiguous()
        if dist.get_backend() == "nccl":
            part = total.new_empty((own, *total.shape[1:]))
            dist.reduce_scatter_tensor(part, total)
            return part
        total = total.clone()  # the incoming gradient is not ours to change
        dist.all_reduce(total)
        return total[dist.get_rank() * own : (dist.get_rank() + 1) * own]


def _refuse_unequal(embeddings: Embeddings) -> None:
    """Compare a few numbers of all ranks before the real exchange, which would hang or mix up rows."""
    tables = (embeddings.vectors, embeddings.present, embeddings.likelihoods, embeddings.pooled)
    layout = [
        [(name, list(table[name].shape[1:]), str(table[name].dtype)) for name in sorted(table)] for table in tables
    ]
    own = torch.tensor([len(embeddings.group), zlib.crc32(repr(layout).encode())], device=embeddings.group.device)
    everyone = own.new_empty((world_size(), 2))
    dist.all_gather_into_tensor(everyone.view(-1), own)
    rows, layouts = everyone.T.tolist()
    if len(set(rows)) > 1:
        raise ValueError(f"ranks hold different numbers of rows ({rows}); a global batch must divide evenly over ranks")
    if len(set(layouts)) > 1:
        raise ValueError(f"ranks hold different modalities or sizes; this one (rank {dist.get_rank()}): {layout}")
