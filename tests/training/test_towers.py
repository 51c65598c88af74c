"""Recomputed and compiled towers: the same results and gradients, less kept."""

import copy

import pytest
import torch

from mmalign.batch import Batch, Values
from mmalign.encoders import ImageTimm, TextBytes
from mmalign.model import Aligner
from mmalign.training.towers import compile_towers, recompute_layers

LENGTH = 24


@pytest.fixture
def model() -> Aligner:
    torch.manual_seed(0)
    image = ImageTimm("resnet10t", size=32, options={"channels": [8, 8, 16, 16], "stem_width": 8}, pretrained=False)
    text = TextBytes(width=16, depth=3, heads=2, max_length=LENGTH, dropout=0.2)
    return Aligner({"image": image, "text": text}, dim=8)


@pytest.fixture
def texts() -> Batch:
    present = torch.ones(6, dtype=torch.bool)
    ids = torch.randint(3, 200, (6, LENGTH))
    return Batch([str(i) for i in range(6)], {"text": Values(present, ids, ids > 0)}, torch.arange(6))


def gradients(model: Aligner, batch: Batch) -> tuple[list[torch.Tensor], int]:
    """Of all text parameters, and how many numbers were kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vectors = model(batch).vectors["text"]
    weights = list(model.tower("text").parameters())
    found = torch.autograd.grad(vectors.square().mul(torch.arange(8)).sum(), weights, allow_unused=True)
    return [g for g in found if g is not None], sum(kept.values())


def test_recomputed_layers_have_the_same_gradients_and_keep_less(model, texts):
    plain, kept = gradients(model, texts)
    recompute_layers(model, ["text"])
    found, kept_now = gradients(model, texts)
    assert len(found) == len(plain) > 10
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert kept_now < kept / 2


def test_a_copy_of_a_recomputed_tower_is_its_own(model, texts):
    recompute_layers(model, ["text"])
    teacher = copy.deepcopy(model).eval()
    with torch.no_grad():
        before = teacher(texts).vectors["text"].clone()
        for parameter in model.parameters():
            parameter.mul_(0.5)
        torch.testing.assert_close(teacher(texts).vectors["text"], before, rtol=0, atol=0)


def test_a_compiled_tower_gives_the_same(model, texts):
    model.eval()
    names, plain = list(model.state_dict()), model(texts).vectors["text"]
    compile_towers(model, ["text"], backend="aot_eager")
    torch.testing.assert_close(model(texts).vectors["text"], plain, rtol=1e-5, atol=1e-6)
    assert list(model.state_dict()) == names


def test_what_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match=r"runtime.compile: 'sound' is none of the modalities"):
        compile_towers(model, ["sound"])
    with pytest.raises(ValueError, match="image tower's blocks hold batch normalisation"):
        recompute_layers(model, ["image"])
