"""Embedding in chunks, kept or recomputed, against each other and against the batch in one piece."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.batch import Batch, Embeddings, Values
from mmalign.losses import InfoNCE, SigLIP
from mmalign.training.chunking import chunked, concatenate

WORKER = Path(__file__).with_name("chunking_worker.py")


class PatchDropout(nn.Module):
    """Keeps a random half of the positions."""

    def forward(self, sequence: Tensor) -> Tensor:
        if not self.training:
            return sequence
        kept = torch.rand(sequence.shape[:2]).argsort(dim=1)[:, : sequence.shape[1] // 2]
        return sequence.gather(1, kept[:, :, None].expand(-1, -1, sequence.shape[2]))


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(PatchDropout(), nn.Linear(6, 32), nn.GELU(), nn.Dropout(0.3), nn.Linear(32, 8))
        self.text = nn.Sequential(nn.Linear(5, 32), nn.Dropout(0.2), nn.Tanh(), nn.Linear(32, 8))
        self.losses = nn.ModuleList([InfoNCE("image", "text"), SigLIP("text", "image")])

    def forward(self, batch: Batch) -> Embeddings:
        image = self.image(batch.modalities["image"].values).mean(1)
        text = self.text(batch.modalities["text"].values)
        present = {name: values.present for name, values in batch.modalities.items()}
        vectors = {"image": F.normalize(image, dim=1), "text": F.normalize(text, dim=1)}
        likelihoods = {} if batch.language is None else {"text": torch.stack([text[:, 0], text[:, 0] * 0 + 1], dim=1)}
        return Embeddings(vectors, present, batch.group, likelihoods, {"text": text}, replayed=batch.replayed)


def make_batch(size: int = 22) -> Batch:
    torch.manual_seed(0)
    everywhere = torch.ones(size, dtype=torch.bool)
    return Batch(
        keys=[str(i) for i in range(size)],
        modalities={
            "image": Values(torch.arange(size) % 7 != 2, torch.randn(size, 10, 6)),
            "text": Values(everywhere, torch.randn(size, 5)),
        },
        group=torch.arange(size) // 2,
        language=everywhere,
        replayed=torch.arange(size) % 4 == 0,
    )


def step(model: TwoTowers, batch: Batch, chunk_size: int | None, recompute: bool, bf16: bool = False) -> list[Tensor]:
    """The loss, every parameter's gradient, and the generator's next number."""
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        embeddings = chunked(model, batch, chunk_size, recompute)
        loss = torch.stack([loss(embeddings) for loss in model.losses]).sum() + embeddings.likelihoods["text"].sum()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters()), torch.rand(())]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    for f, e in zip(found, expected, strict=True):
        assert (f - e).norm() <= tolerance * e.norm().clamp(min=1e-3)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 5, 8, 21])
def test_recomputed_equals_kept_with_dropout_on(chunk_size, bf16):
    model, batch = TwoTowers(), make_batch()
    kept = step(model, batch, chunk_size, recompute=False, bf16=bf16)
    assert_same(step(model, batch, chunk_size, recompute=True, bf16=bf16), kept)
    other_seed = TwoTowers()
    other_seed.load_state_dict(model.state_dict())
    torch.manual_seed(2)
    assert not torch.equal(chunked(other_seed, batch, chunk_size).vectors["image"], other_seed(batch).vectors["image"])


@pytest.mark.parametrize("chunk_size", [None, 5, 22, 1000])
def test_accumulated_chunks_equal_the_one_big_batch(chunk_size):
    model, batch = TwoTowers().eval(), make_batch()  # no dropout
    whole = step(model, batch, None, recompute=False)
    for recompute in (False, True):
        assert_same(step(model, batch, chunk_size, recompute), whole)


def test_every_field_is_kept_in_order():
    model, batch = TwoTowers().eval(), make_batch()
    found, expected = chunked(model, batch, 5), model(batch)
    assert found.rows is None
    assert torch.equal(found.group, expected.group)
    assert found.replayed is not None
    assert torch.equal(found.replayed, batch.replayed)
    for table in ("vectors", "present", "likelihoods", "pooled"):
        ours, theirs = getattr(found, table), getattr(expected, table)
        assert set(ours) == set(theirs)
        assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-6) for name in theirs)


def test_a_table_that_some_chunks_lack_is_zero_there():
    model, batch = TwoTowers().eval(), make_batch(6)
    first, second = model(batch.rows(0, 4)), model(replace(batch.rows(4, 6), language=None, replayed=None))
    joined = concatenate([first, second])
    assert torch.equal(joined.likelihoods["text"][:4], first.likelihoods["text"])
    assert not joined.likelihoods["text"][4:].any()
    assert joined.replayed is not None
    assert joined.replayed.tolist() == [True, False, False, False, False, False]


def test_towers_run_twice_only_when_asked():
    calls: list[int] = []
    model, batch = TwoTowers(), make_batch()
    model.image.register_forward_hook(lambda *_: calls.append(1))
    for recompute, expected in ((False, 5), (True, 10)):
        calls.clear()
        step(model, batch, 5, recompute)
        assert len(calls) == expected


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="chunk_size"):
        chunked(TwoTowers(), make_batch(), 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_one_chunk():
    peak = {}
    for chunk_size in ("none", "32"):
        run = subprocess.run([sys.executable, str(WORKER), chunk_size], capture_output=True, text=True, check=True)
        peak[chunk_size] = float(run.stdout)
    assert peak["32"] <= peak["none"] / 4
