"""The pairwise sigmoid contrast of two sets of vectors, in memory linear in their number.

Every pair's gradient depends on that pair alone, so the forward pass that computes a tile's loss also adds its share of
the gradients: three matrix products in all, none of them twice, and no matrix.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.losses.tiles import Positives, add_product, along, product, tiles, widest


def sigmoid_contrast(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "columns dim"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    positives: Positives,
    weight: float,
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, ""]:
    """weight · Σ_ij -log sigmoid(±z_ij), z_ij = logit_scale · x_i·y_j + logit_bias; + for positives, - for others.

    Args:
        tile: rows and columns of a tile, for tests; chosen by size and device otherwise.

    Returns: a scalar of the vectors' type, differentiable once by the first four arguments.
    """
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, logit_scale, logit_bias))
    with torch.autocast(x.device.type, enabled=False):
        loss: Tensor = _SigmoidContrast.apply(x, y, logit_scale, logit_bias, positives, weight, tile, wanted)
    return loss


class _SigmoidContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        positives: Positives,
        weight: float,
        shape: tuple[int, int] | None,
        wanted: bool,
    ) -> Tensor:
        needs_x, needs_y, needs_scale, _ = (wanted and need for need in ctx.needs_input_grad[:4])
        grad_x = torch.zeros_like(x) if needs_x or needs_scale else None
        grad_y = torch.zeros_like(y) if needs_y else None
        loss = x.new_zeros((), dtype=widest(x.device))
        grad_bias, grad_scale = torch.zeros_like(loss), torch.zeros_like(loss)
        zero, scale = x.new_zeros(()), float(logit_scale)
        for tile in tiles(len(x), len(y), x.dtype, x.device, shape):
            band, other = x[tile.top : tile.bottom], y[tile.left : tile.right]
            z = product(band, other.T, scale, tile).add_(logit_bias.to(x.dtype))
            rows, columns = positives.within(tile)
            z[rows, columns] *= -1  # the loss of a negative is softplus(z), that of a positive softplus(-z)
            for _, values, scratch in tile.strips():
                loss += torch.logaddexp(values, zero, out=scratch).sum().to(loss.dtype)
                if wanted:
                    grad_bias += values.sigmoid_().sum().to(loss.dtype)
            if not wanted:
                continue
            slopes = z[rows, columns]
            grad_bias -= 2 * slopes.sum().to(loss.dtype)
            z[rows, columns] = -slopes
            if grad_x is not None:
                add_product(grad_x[tile.top : tile.bottom], z, other)
            if grad_y is not None:
                add_product(grad_y[tile.left : tile.right], z.T, band, scale)
            if grad_x is not None and tile.right == len(y):
                grad_scale += along(x, grad_x, tile)
        if grad_x is not None:
            grad_x = grad_x.mul_(scale) if needs_x else None
        found_scale = grad_scale.to(logit_scale.dtype) if needs_scale else None
        ctx.weight = weight
        ctx.save_for_backward(grad_x, grad_y, found_scale, grad_bias.to(logit_bias.dtype))
        return (weight * loss).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradient * ctx.weight
        found = (None if saved is None else saved * factor.to(saved.dtype) for saved in ctx.saved_tensors)
        return (*found, None, None, None, None)
