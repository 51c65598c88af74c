"""The softmax contrast of two sets of vectors, in memory linear in their number.

For similarities s_ij = logit_scale · x_i·y_j the loss needs the log-sum-exp of every row and every column, and its
gradient is (softmax over the row + softmax over the column - positives). The forward pass keeps the log-sum-exps alone,
the backward pass computes each tile of s again: four matrix products instead of three, and no matrix.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.losses.tiles import Positives, Tile, add_product, along, tiles, widest

_SAFE_EXPONENT = {torch.float32: 64.0, torch.float64: 500.0}
"""exp(±this), summed over millions of entries, is neither infinite nor subnormal."""


def softmax_contrast(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "columns dim"],
    logit_scale: Float[Tensor, ""],
    positives: Positives,
    row_weight: float,
    column_weight: float,
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, ""]:
    """row_weight · Σ_i (lse_j s_ij - mean of s_ij over row i's positives) + column_weight · the same of the columns.

    Args:
        column_weight: 0 leaves the columns' direction out; anything else wants `x` and `y` to be the same samples.
        tile: rows and columns of a tile, for tests; chosen by size and device otherwise.

    Returns: a scalar of the vectors' type, differentiable once by `x`, `y` and `logit_scale`.
    """
    with torch.autocast(x.device.type, enabled=False):
        loss: Tensor = _SoftmaxContrast.apply(x, y, logit_scale, positives, (row_weight, column_weight), tile)
    return loss


class _SoftmaxContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        logit_scale: Tensor,
        positives: Positives,
        weights: tuple[float, float],
        shape: tuple[int, int] | None,
    ) -> Tensor:
        bound = _bound(x, y, logit_scale)
        wide = widest(x.device)
        row_lse = x.new_full((len(x),), -torch.inf, dtype=wide)
        column_lse = x.new_full((len(y),), -torch.inf, dtype=wide)
        attraction = x.new_zeros((), dtype=wide)
        for tile in tiles(len(x), len(y), x.dtype, x.device, shape):
            if tile.left == 0:
                band = x[tile.top : tile.bottom] * logit_scale.to(x.dtype)
            s = torch.mm(band, y[tile.left : tile.right].T, out=tile.values)
            rows, columns = positives.within(tile)
            attraction += s[rows, columns].to(wide) @ positives.share(tile, rows)
            shift = _shift(s, bound)
            if shift is not None:
                (s.sub_(shift) if shift else s).exp_()
            _include(row_lse[tile.top : tile.bottom], s, 1, shift)
            if weights[1]:
                _include(column_lse[tile.left : tile.right], s, 0, shift)
        ctx.save_for_backward(x, y, logit_scale, row_lse, column_lse)
        ctx.positives, ctx.weights, ctx.shape, ctx.bound = positives, weights, shape, bound
        loss = weights[0] * row_lse.sum() - sum(weights) * attraction
        if weights[1]:
            loss += weights[1] * column_lse.sum()
        return loss.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, logit_scale, row_lse, column_lse = ctx.saved_tensors
        needs_x, needs_y, needs_scale = ctx.needs_input_grad[:3]
        weights = [weight * gradient.to(row_lse.dtype) for weight in ctx.weights]
        grad_x = torch.zeros_like(x)
        grad_y = torch.zeros_like(y) if needs_y else None
        grad_scale = row_lse.new_zeros(())
        with torch.autocast(x.device.type, enabled=False):
            for tile in tiles(len(x), len(y), x.dtype, x.device, ctx.shape):
                if tile.left == 0:
                    band = x[tile.top : tile.bottom] * logit_scale.to(x.dtype)
                other = y[tile.left : tile.right]
                s = torch.mm(band, other.T, out=tile.values)
                _to_gradient(tile, weights, row_lse, column_lse if ctx.weights[1] else None, ctx.bound)
                rows, columns = ctx.positives.within(tile)
                s[rows, columns] -= (sum(weights) * ctx.positives.share(tile, rows)).to(s.dtype)
                if needs_x or needs_scale:
                    add_product(grad_x[tile.top : tile.bottom], s, other)
                if grad_y is not None:
                    add_product(grad_y[tile.left : tile.right], s.T, band)
                if tile.right == len(y):
                    grad_scale += along(x, grad_x, tile)
        grad_x.mul_(logit_scale.to(x.dtype))
        return (
            (grad_x if needs_x else None),
            grad_y,
            (grad_scale.to(logit_scale.dtype) if needs_scale else None),
            None,
            None,
            None,
        )


def _bound(x: Tensor, y: Tensor, logit_scale: Tensor) -> float:
    """No similarity is larger than this in magnitude (Cauchy and Schwarz)."""
    if not len(x) or not len(y):
        return 0.0
    return float(
        logit_scale.abs() * torch.linalg.vector_norm(x, dim=1).max() * torch.linalg.vector_norm(y, dim=1).max()
    )


def _shift(s: Tensor, bound: float) -> float | None:
    """A number c for which exp(s - c) keeps its precision everywhere in the tile; None where the tile spans too much.

    With it one exponential serves the rows and the columns.
    """
    safe = _SAFE_EXPONENT[s.dtype]
    if bound <= safe:
        return 0.0
    low, high = (float(value) for value in torch.aminmax(s))
    return (low + high) / 2 if high - low <= 2 * safe else None


def _include(lse: Tensor, s: Tensor, axis: int, shift: float | None) -> None:
    """Add a tile's terms to the log-sum-exps; `s` is exp(similarity - shift), or the similarity where shift is None."""
    terms = s.logsumexp(axis).to(lse.dtype) if shift is None else s.sum(axis).to(lse.dtype).log_().add_(shift)
    torch.logaddexp(lse, terms, out=lse)


def _to_gradient(tile: Tile, weights: list[Tensor], row_lse: Tensor, column_lse: Tensor | None, bound: float) -> None:
    """Turn similarities into the weighted sum of softmax over the row and softmax over the column, in place."""
    s = tile.values
    rows = row_lse[tile.top : tile.bottom, None]
    columns = None if column_lse is None else column_lse[None, tile.left : tile.right]
    shift = _shift(s, bound)
    if shift is not None:
        (s.sub_(shift) if shift else s).exp_()
        factor = (weights[0] * (shift - rows).exp()).to(s.dtype)
        if columns is not None:
            factor = torch.add(factor, (weights[1] * (shift - columns).exp()).to(s.dtype), out=tile.scratch)
        s.mul_(factor)
        return
    if columns is not None:
        torch.sub(s, columns.to(s.dtype), out=tile.scratch).exp_().mul_(weights[1].to(s.dtype))
    s.sub_(rows.to(s.dtype)).exp_().mul_(weights[0].to(s.dtype))
    if columns is not None:
        s.add_(tile.scratch)
