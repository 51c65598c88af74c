"""Large batches on small memory: embed in chunks, contrast all, and embed each chunk again when its gradient is due."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmalign.batch import Batch, Embeddings
from mmalign.model import Aligner, batch_norms
from mmalign.training.trainable import frozen_modules


def chunked(
    function: Callable[[Batch], Embeddings], batch: Batch, chunk_size: int | None, recompute: bool = True
) -> Embeddings:
    """Apply `function` to `chunk_size` rows at a time; the result is differentiable as if done at once.

    This is gradient caching: with `recompute`, a chunk's activations are dropped once its embeddings are known, and
    made again, under the same generator state and autocast, when the loss over all rows has sent its gradient back.
    Memory is that of one chunk plus the embeddings; time is that of one more forward pass. It is also the exact
    gradient accumulation for contrastive losses: k chunks of a batch see the negatives of the whole batch, and there is
    one backward pass, so optimizer, clipping and distributed training need to know nothing.

    Random numbers are drawn chunk by chunk; with dropout the result equals that of the same chunks kept in memory
    (`recompute=False`), and is one sample of what the whole batch at once would give. Without dropout it equals the
    whole batch at once. Layers that mix rows, such as BatchNorm in training mode, see one chunk at a time and, with
    `recompute`, update their running statistics twice: keep them in evaluation mode (see `check_chunks`).

    Args:
        function: rows of a batch -> their embeddings; no side effects.
        chunk_size: None or at least the batch's size: all rows at once, nothing recomputed.
        recompute: False keeps all activations: more memory, less time.

    Paper: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup.

    Raises:
        ValueError: `chunk_size` is below 1.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    if chunk_size is None or chunk_size >= len(batch):
        return function(batch)
    parts = []
    for start in range(0, len(batch), chunk_size):
        rows = batch.rows(start, start + chunk_size)
        if recompute and torch.is_grad_enabled():
            # a tensor among the arguments tells `checkpoint` whose device's generator to replay
            parts.append(checkpoint(lambda part, _: function(part), rows, rows.group, use_reentrant=False))
        else:
            parts.append(function(rows))
    return concatenate(parts)


def check_chunks(model: Aligner, chunk_size: int | None, rows: int, stage: str) -> None:
    """Refuse chunks of a batch of `rows` where a part that is trained, by its `requires_grad`, normalises by batch.

    Raises:
        ValueError: names the key, the stage and the component.
    """
    if chunk_size is None or chunk_size >= rows:
        return
    evaluating = {module for part in frozen_modules(model) for module in part.modules()}
    for name, component in model.components().items():
        if any(norm not in evaluating for norm in batch_norms(component)):
            raise ValueError(
                f"runtime.chunk_size: stage {stage!r} trains {name}, which holds batch normalisation: with "
                f"{chunk_size} of {rows} rows at a time its statistics, and so the gradients, would be others"
            )


def concatenate(parts: list[Embeddings]) -> Embeddings:
    """Rows of several embeddings, one after the other. Where a part lacks a table of the others, its rows are zeros."""
    sizes = [len(part.group) for part in parts]

    def join(tables: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        names = sorted({name for table in tables for name in table})
        return {name: _join_rows([table.get(name) for table in tables], sizes) for name in names}

    return Embeddings(
        vectors=join([part.vectors for part in parts]),
        present=join([part.present for part in parts]),
        group=torch.cat([part.group for part in parts]),
        likelihoods=join([part.likelihoods for part in parts]),
        pooled=join([part.pooled for part in parts]),
        replayed=join([{} if part.replayed is None else {"": part.replayed} for part in parts]).get(""),
    )


def _join_rows(rows: list[Tensor | None], sizes: list[int]) -> Tensor:
    example = next(tensor for tensor in rows if tensor is not None)
    filled = (
        example.new_zeros((size, *example.shape[1:])) if tensor is None else tensor
        for tensor, size in zip(rows, sizes, strict=True)
    )
    return torch.cat(list(filled))
