"""What a teacher shares with the model that it teaches, and that this changes nothing that it says."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmalign.batch import Batch, Values
from mmalign.encoders.text_hf import TextCausalHF, TextHF
from mmalign.model import Aligner
from mmalign.retention.distill import teacher_of
from mmalign.training.trainable import frozen_modules
from tests.encoders.conftest import hf_folder  # noqa: F401

TEXTS = ["a small red circle", "the cat", "a", "the cat"]


@pytest.fixture(params=["bert", "llama"])
def model(request: pytest.FixtureRequest, hf_folder: Callable[[str], Path]) -> Aligner:  # noqa: F811
    """Of the text tower the last layer is trained."""
    kind = TextHF if request.param == "bert" else TextCausalHF
    text = kind(str(hf_folder(request.param)), max_length=32, prefix_cache_bytes=10**6)
    model = Aligner({"text": text}, dim=8).train()
    text.requires_grad_(False)
    text.layers()[-1].requires_grad_(True)
    for part in [*frozen_modules(model), *(m for m in model.modules() if isinstance(m, torch.nn.Dropout))]:
        part.eval()
    return model


def batch_of(model: Aligner) -> Batch:
    preprocess = model.tower("text").preprocess
    values, mask = preprocess.collate([preprocess.prepare(text, None) for text in TEXTS])
    text = Values(torch.ones(len(TEXTS), dtype=torch.bool), values, mask)
    return Batch([str(i) for i in range(len(TEXTS))], {"text": text}, torch.arange(len(TEXTS)))


def test_it_says_what_the_model_said_when_it_was_taken(model: Aligner) -> None:
    batch, teacher = batch_of(model), teacher_of(model)
    plain = copy.deepcopy(model).eval()
    with torch.no_grad():
        before = model(batch).vectors["text"]
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight.add_(0.3 * torch.randn_like(weight))
        assert not torch.allclose(model(batch).vectors["text"], before, atol=0.01)
        torch.testing.assert_close(teacher(batch).vectors["text"], plain(batch).vectors["text"])
        assert len(teacher.tower("text").prefix) == 3  # so it was used, though no gradients were wanted


def test_what_is_frozen_is_there_once_and_what_is_trained_twice(model: Aligner) -> None:
    teacher = teacher_of(model)
    pairs = list(zip(model.named_parameters(), teacher.parameters(), strict=True))
    assert {weight.requires_grad for (_, weight), _ in pairs} == {True, False}
    for (name, weight), other in pairs:
        assert (other is weight) is not weight.requires_grad, name
    assert not any(part.training for part in teacher.modules())
    assert model.projections["text"].training


def test_each_text_goes_through_the_frozen_layers_once_for_both(model: Aligner) -> None:
    batch, teacher = batch_of(model), teacher_of(model)
    calls: list[str] = []
    for name, owner in (("model", model), ("teacher", teacher)):
        blocks = [m for m in owner.tower("text").modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2]
        own = blocks[0][0].forward

        def counted(
            hidden: torch.Tensor, *arguments: object, own: Callable = own, name: str = name, **keywords: object
        ) -> object:
            calls.append(name)
            return own(hidden, *arguments, **keywords)

        blocks[0][0].forward = counted
    first = 0
    for _ in range(3):
        model(batch).vectors["text"].sum().backward()
        first = first or len(calls)
        with torch.no_grad():
            teacher(batch)
    assert calls == ["model"] * first
    assert first > 0
    assert model.tower("text").prefix.bytes_used == teacher.tower("text").prefix.bytes_used > 0
