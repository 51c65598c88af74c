"""The softmax contrast of two sets of vectors, in memory linear in their number.

For similarities s_ij = logit_scale · x_i·y_j the loss needs the log-sum-exp of every row and every column, and its
gradient is (softmax over the row + softmax over the column - positives). The forward pass keeps the log-sum-exps and
the last tiles of s, a fixed number, the backward pass starts with these and computes each other tile again: three
matrix products where they are all, up to four where they are not, and no matrix.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.losses.tiles import KEPT_TILES, Positives, Tile, add_product, along, product, tiles, widest

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
        scale = float(logit_scale)
        bound = _bound(x, y, scale)
        wide = widest(x.device)
        row_lse = x.new_full((len(x),), -torch.inf, dtype=wide)
        column_lse = x.new_full((len(y),), -torch.inf, dtype=wide)
        attraction = x.new_zeros((), dtype=wide)
        kept = KEPT_TILES.get(x.device.type, KEPT_TILES["cuda"])
        covering = tiles(len(x), len(y), x.dtype, x.device, shape, kept)
        shifts = []
        for tile in covering:
            s = product(x[tile.top : tile.bottom], y[tile.left : tile.right].T, scale, tile)
            rows, columns = positives.within(tile)
            attraction += s[rows, columns].to(wide) @ positives.share(tile, rows)
            shifts.append(_shift(s, bound))
            over_row, over_column = _log_sums(tile, shifts[-1], wide, bool(weights[1]))
            lse = row_lse[tile.top : tile.bottom]
            torch.logaddexp(lse, over_row, out=lse)
            if over_column is not None:
                lse = column_lse[tile.left : tile.right]
                torch.logaddexp(lse, over_column, out=lse)
        ctx.save_for_backward(x, y, row_lse, column_lse)
        ctx.positives, ctx.weights, ctx.shape, ctx.scale, ctx.bound = positives, weights, shape, scale, bound
        ctx.scale_dtype = logit_scale.dtype
        ctx.kept = (covering, shifts[-kept:])
        loss = weights[0] * row_lse.sum() - sum(weights) * attraction
        if weights[1]:
            loss += weights[1] * column_lse.sum()
        return loss.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, row_lse, column_lse = ctx.saved_tensors
        needs_x, needs_y, needs_scale = ctx.needs_input_grad[:3]
        weights = [weight * gradient.to(row_lse.dtype) for weight in ctx.weights]
        grad_x = torch.zeros_like(x)
        grad_y = torch.zeros_like(y) if needs_y else None
        grad_scale = row_lse.new_zeros(())
        # The last tiles are as the forward pass left them; in a second backward pass none is.
        covering, shifts = ctx.kept or (tiles(len(x), len(y), x.dtype, x.device, ctx.shape), [])
        ctx.kept = None
        with torch.autocast(x.device.type, enabled=False):
            for tile in reversed(covering):
                band, other = x[tile.top : tile.bottom], y[tile.left : tile.right]
                s = tile.values
                known = bool(shifts)
                shift = shifts.pop() if known else _shift(product(band, other.T, ctx.scale, tile), ctx.bound)
                _to_gradient(tile, weights, row_lse, column_lse if ctx.weights[1] else None, shift, known)
                rows, columns = ctx.positives.within(tile)
                s[rows, columns] -= (sum(weights) * ctx.positives.share(tile, rows)).to(s.dtype)
                if needs_x or needs_scale:
                    add_product(grad_x[tile.top : tile.bottom], s, other)
                if grad_y is not None:
                    add_product(grad_y[tile.left : tile.right], s.T, band, ctx.scale)
                if tile.left == 0:
                    grad_scale += along(x, grad_x, tile)
        grad_x.mul_(ctx.scale)
        return (
            (grad_x if needs_x else None),
            grad_y,
            (grad_scale.to(ctx.scale_dtype) if needs_scale else None),
            None,
            None,
            None,
        )


def _bound(x: Tensor, y: Tensor, scale: float) -> float:
    """No similarity is larger than this in magnitude (Cauchy and Schwarz)."""
    if not len(x) or not len(y):
        return 0.0
    longest = [torch.linalg.vector_norm(vectors, dim=1).max() for vectors in (x, y)]
    return abs(scale) * float(longest[0] * longest[1])


def _shift(s: Tensor, bound: float) -> float | None:
    """A number c for which exp(s - c) keeps its precision everywhere in the tile; None where the tile spans too much.

    With it one exponential serves the rows and the columns.
    """
    safe = _SAFE_EXPONENT[s.dtype]
    if bound <= safe:
        return 0.0
    low, high = (float(value) for value in torch.aminmax(s))
    return (low + high) / 2 if high - low <= 2 * safe else None


def _exponentiate(values: Tensor, shift: float) -> None:
    (values.sub_(shift) if shift else values).exp_()


def _log_sums(
    tile: Tile, shift: float | None, wide: torch.dtype, columns: bool
) -> tuple[Float[Tensor, " tile_rows"], Float[Tensor, " tile_columns"] | None]:
    """Logarithm of the sum of exp(similarity) over each row, and over each column where wanted.

    With a shift the tile's values become exp(similarity - shift).
    """
    s = tile.values
    if shift is None:
        return s.logsumexp(1).to(wide), s.logsumexp(0).to(wide) if columns else None
    over_row, over_column = s.new_empty(len(s), dtype=wide), s.new_zeros(s.shape[1], dtype=wide)
    for rows, values, _ in tile.strips():
        _exponentiate(values, shift)
        over_row[rows] = values.sum(1)
        if columns:
            over_column += values.sum(0)
    return over_row.log_().add_(shift), over_column.log_().add_(shift) if columns else None


def _to_gradient(
    tile: Tile,
    weights: list[Tensor],
    row_lse: Tensor,
    column_lse: Tensor | None,
    shift: float | None,
    exponentials: bool,
) -> None:
    """Turn similarities into the weighted sum of softmax over the row and softmax over the column, in place.

    Args:
        exponentials: with a shift, the tile holds exp(similarity - shift) instead.
    """
    dtype = tile.values.dtype
    row_lse = row_lse[tile.top : tile.bottom, None]
    column_lse = None if column_lse is None else column_lse[None, tile.left : tile.right]
    if shift is not None:
        by_row = (weights[0] * (shift - row_lse).exp()).to(dtype)
        by_column = None if column_lse is None else (weights[1] * (shift - column_lse).exp()).to(dtype)
        for rows, values, scratch in tile.strips():
            if not exponentials:
                _exponentiate(values, shift)
            values.mul_(by_row[rows] if by_column is None else torch.add(by_row[rows], by_column, out=scratch))
        return
    row_lse, column_lse = row_lse.to(dtype), None if column_lse is None else column_lse.to(dtype)
    for rows, values, scratch in tile.strips():
        if column_lse is not None:
            torch.sub(values, column_lse, out=scratch).exp_().mul_(weights[1].to(dtype))
        values.sub_(row_lse[rows]).exp_().mul_(weights[0].to(dtype))
        if column_lse is not None:
            values.add_(scratch)
