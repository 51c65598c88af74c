"""How many operations the contrastive losses take, and in which types."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmalign.batch import Embeddings
from mmalign.losses import InfoNCE, SigLIP, tiles
from mmalign.losses.base import Loss

BATCH, DIM = 48, 8


def embeddings(rows: tuple[int, int] | None = None) -> Embeddings:
    a, b = (F.normalize(torch.randn(BATCH, DIM), dim=1).requires_grad_() for _ in "ab")
    everywhere = torch.ones(BATCH, dtype=torch.bool)
    return Embeddings({"a": a, "b": b}, {"a": everywhere, "b": everywhere}, torch.arange(BATCH) // 2, rows=rows)


@pytest.mark.parametrize(
    ("loss", "rows", "shape", "numbers"),
    [
        # The similarities of everything but the last four tiles twice, and two gradients.
        (InfoNCE("a", "b"), None, (BATCH, BATCH), 3 * BATCH * BATCH),
        (InfoNCE("a", "b"), None, (30, 30), 3 * BATCH * BATCH),
        (InfoNCE("a", "b"), None, (20, 30), 4 * BATCH * BATCH - 28 * BATCH),
        # A quarter of the anchors, in each of two directions.
        (InfoNCE("a", "b"), (12, 24), (BATCH, BATCH), 2 * 3 * 12 * BATCH),
        (InfoNCE("a", "b"), (12, 24), (20, 30), 2 * 3 * 12 * BATCH),
        (InfoNCE("a", "b"), (12, 24), (5, 10), 2 * (4 * 12 * BATCH - 2 * 38)),
        (SigLIP("a", "b"), None, (BATCH, BATCH), 3 * BATCH * BATCH),
        (SigLIP("a", "b"), None, (20, 30), 3 * BATCH * BATCH),
        (SigLIP("a", "b"), (12, 24), (BATCH, BATCH), 3 * 12 * BATCH),
        (SigLIP("a", "b"), (12, 24), (20, 30), 3 * 12 * BATCH),
    ],
)
def test_products_forward_and_backward(
    loss: Loss, rows: tuple[int, int] | None, shape: tuple[int, int], numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "tile_shape", lambda *_: shape)
    given = embeddings(rows)
    with FlopCounterMode(display=False) as counter:
        loss(given).backward()
    assert counter.get_total_flops() == numbers * 2 * DIM


class Types(TorchDispatchMode):
    """Which floating types operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, torch.Tensor) and part.is_floating_point():
                self.seen.add(part.dtype)
        return result


@pytest.mark.parametrize("kind", [InfoNCE, SigLIP])
@pytest.mark.parametrize("rows", [None, (12, 24)])
def test_a_device_without_float64_sees_none(
    kind: type[Loss], rows: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiles.widest(torch.device("mps")) == torch.float32
    loss, given, found = kind("a", "b"), embeddings(rows), []
    inputs = [*given.vectors.values(), *loss.parameters()]
    for widest in (torch.float64, torch.float32):
        for module in ("tiles", "softmax_tiles", "sigmoid_tiles"):
            monkeypatch.setattr(f"mmalign.losses.{module}.widest", lambda _, widest=widest: widest)
        with Types() as types:
            value = loss(given)
            found.append([value, *torch.autograd.grad(value, inputs)])
        assert (torch.float64 in types.seen) == (widest == torch.float64)
    torch.testing.assert_close(*found)
