"""Attention under autocast on a CPU, in float32: torch's kernel takes several times as long in bfloat16 there."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional


@cache
def keep_attention_in_float32() -> Library:
    """Move `scaled_dot_product_attention` to the operations that CPU autocast runs in float32, in this process.

    Torch has it among those that run in the lower precision, where even a caller's own casts to float32 are undone; and
    its kernel, above all the backward pass, takes several times as long there (measured with AVX512_BF16, not with
    AMX). The result has autocast's dtype as before. What runs without autocast, or on another device, is as it was.

    The rule stands in torch's dispatcher and not around a tower's forward pass: so it holds for whatever library a
    tower comes from, in compiled code, and where layers run again in the backward pass.

    Returns:
        What keeps the rule alive.
    """
    rule = Library("aten", "IMPL")
    rule.impl("scaled_dot_product_attention", _attend, "AutocastCPU", allow_override=True)
    return rule


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        inputs = (None if tensor is None else _float32(tensor) for tensor in (query, key, value, attn_mask))
        mixed = functional.scaled_dot_product_attention(*inputs, *rest, **options)  # type: ignore[arg-type]
    return mixed if mixed.dtype == torch.float64 else mixed.to(torch.get_autocast_dtype("cpu"))


def _float32(tensor: Tensor) -> Tensor:
    """What autocast casts, cast: no mask of truth values, and no float64."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
