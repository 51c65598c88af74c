"""Attention under autocast on a CPU: in float32, in every tower, forward and backward."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mmalign.batch import Batch, Values
from mmalign.encoders import ImageOpenClip, ImageTimm, TextBytes, TextCausalHF, TextHF, TextOpenClip
from mmalign.encoders.base import Encoder
from mmalign.model import Aligner
from mmalign.training.chunking import chunked
from mmalign.training.towers import compile_towers

TINY_VIT = {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Kernels(TorchDispatchMode):
    """Records each call of torch's kernel for attention on a CPU: whether it is the backward one, and its dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, set[torch.dtype]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (ATTENTION, BACKWARD):
            tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, torch.Tensor)]
            self.calls.append((func is BACKWARD, {t.dtype for t in tensors if t.is_floating_point()}))
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["own", "timm", "open_clip image", "open_clip text", "bert", "llama"])
def tower(request, hf_folder, open_clip_folder) -> Encoder:
    torch.manual_seed(0)
    made = {
        "own": lambda: TextBytes(width=16, depth=2, heads=2, max_length=24),
        "timm": lambda: ImageTimm("vit_tiny_patch16_224", size=32, options=TINY_VIT),
        "open_clip image": lambda: ImageOpenClip(f"local-dir:{open_clip_folder()}"),
        "open_clip text": lambda: TextOpenClip(f"local-dir:{open_clip_folder()}"),
        "bert": lambda: TextHF(str(hf_folder("bert")), max_length=24),
        "llama": lambda: TextCausalHF(str(hf_folder("llama")), max_length=24),
    }
    return made[request.param]().eval()  # no dropout


def batch_for(tower: Encoder, size: int = 6) -> Batch:
    if tower.preprocess.kind == "image":
        values, mask = torch.randn(size, 3, 32, 32), None
    else:
        values, mask = tower.preprocess.collate(
            [tower.preprocess.prepare("the cat sat"[: i + 3], None) for i in range(size)]
        )
    return Batch(
        [str(i) for i in range(size)],
        {"a": Values(torch.ones(size, dtype=torch.bool), values, mask)},
        torch.arange(size),
    )


def gradients(model: Aligner, batch: Batch, chunk_size: int | None = None) -> list[torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        vectors = chunked(model, batch, chunk_size).vectors["a"]
        loss = (vectors * torch.arange(8)).square().sum()
    weights = list(model.parameters())
    return [g for g in torch.autograd.grad(loss, weights, allow_unused=True) if g is not None]


def test_every_tower_attends_in_float32(tower):
    model, batch = Aligner({"a": tower}, dim=8), batch_for(tower)
    with Kernels() as kernels:
        plain = gradients(model, batch)
    assert kernels.calls == [(False, {torch.float32})] * 2 + [(True, {torch.float32})] * 2
    with Kernels() as kernels:  # each of two chunks again when autocast has been left
        cached = gradients(model, batch, chunk_size=3)
    assert [backward for backward, _ in kernels.calls].count(False) == 8
    assert all(dtypes == {torch.float32} for _, dtypes in kernels.calls)
    for one, other in zip(cached, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))


def test_compiled_towers_give_the_same(tower):
    model, batch = Aligner({"a": tower}, dim=8), batch_for(tower)
    plain = gradients(model, batch)
    compile_towers(model, ["a"], backend="aot_eager")
    for one, other in zip(gradients(model, batch), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_the_result_is_that_of_float32_in_the_dtype_of_autocast(dtype, mask):
    TextBytes(width=16, depth=1, heads=2)  # any tower: from now on
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 8).to(dtype)
    seen = None if mask is None else torch.rand(2, 1, 9, 9) > 0.3
    if mask == "float":
        seen = torch.where(seen, 0.5, -30.0).to(dtype)
    attend = functional.scaled_dot_product_attention
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(query, key, value, seen, scale=0.3)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    floats = seen if mask != "float" else seen.to(exact)
    expected = attend(query.to(exact), key.to(exact), value.to(exact), floats, scale=0.3)
    assert torch.equal(found, expected if dtype == torch.float64 else expected.bfloat16())


def test_without_autocast_all_is_as_it_was():
    TextBytes(width=16, depth=1, heads=2)
    query = torch.randn(2, 4, 9, 8).bfloat16()
    with Kernels() as kernels:
        functional.scaled_dot_product_attention(query, query, query)
    assert kernels.calls == [(False, {torch.bfloat16})]
