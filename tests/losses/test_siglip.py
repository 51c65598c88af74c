"""The tiled sigmoid contrast against the full matrix, against open_clip, and through its contract."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss
from torch import Tensor

from mmalign.batch import Embeddings
from mmalign.losses import SigLIP
from mmalign.losses.sigmoid_tiles import sigmoid_contrast
from mmalign.losses.tiles import Positives


def plain(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, group: Tensor, start: int, stop: int, weight: float
) -> Tensor:
    """The definition, with the whole matrix in sight."""
    sign = torch.where(group[start:stop, None] == group[None], 1.0, -1.0)
    return -weight * F.logsigmoid(sign * (scale * a[start:stop] @ b.T + bias)).sum()


def random_vectors(batch: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    return [F.normalize(v, dim=1).to(dtype).requires_grad_() for v in (a, b + a / 3)]


def embeddings(a: Tensor, b: Tensor, group: Tensor | None = None, **changes) -> Embeddings:
    everywhere = torch.ones(len(a), dtype=torch.bool)
    group = torch.arange(len(a)) if group is None else group
    return replace(Embeddings({"a": a, "b": b}, {"a": everywhere, "b": everywhere}, group), **changes)


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float) -> None:
    pairs = [(found, expected)]
    pairs += zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for f, e in pairs:
        error = (f.double() - e.double()).norm() / e.double().norm().clamp(min=1e-3)
        assert error <= tolerance, f"relative error {error:.2e}"


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 23),
    dim=st.integers(1, 9),
    groups=st.integers(1, 40),
    scale=st.sampled_from([0.5, 10.0, 100.0, 800.0]),
    bias=st.sampled_from([-10.0, 0.0, 3.0]),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 10**6),
)
def test_tiles_equal_the_full_matrix(batch, dim, groups, scale, bias, tile, part, seed):
    a, b = random_vectors(batch, dim, seed)
    group = torch.randint(groups, (batch,), generator=torch.Generator().manual_seed(seed))
    if groups > 30:
        group = torch.randperm(batch)
    start, stop = sorted(round(p * batch) for p in part)
    logit_scale, logit_bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (scale, bias))
    inputs = [a, b, logit_scale, logit_bias]
    positives = Positives.of(group, start, stop)
    found = sigmoid_contrast(a[start:stop], b, logit_scale, logit_bias, positives, 0.7, tile)
    assert_same(found, plain(*inputs, group, start, stop, 0.7), inputs, 1e-11)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -20.0)])
def test_float32_agrees_to_a_millionth(scale, bias, repeated):
    a, b = random_vectors(300, 64, 0, torch.float32)
    group = torch.arange(300) // (3 if repeated else 1)
    rest = [torch.tensor(v, requires_grad=True) for v in (scale, bias)]
    found = sigmoid_contrast(a, b, *rest, Positives.of(group, 0, 300), 1 / 300, (64, 100))
    exact = [t.detach().double().requires_grad_() for t in (a, b, *rest)]
    expected = plain(*exact, group, 0, 300, 1 / 300)
    slopes = torch.autograd.grad(found, [a, b, *rest])
    for f, e in zip((found, *slopes), (expected, *torch.autograd.grad(expected, exact)), strict=True):
        assert (f - e).norm() <= 1e-6 * e.norm()


def test_gradients_by_finite_differences():
    a, b = random_vectors(5, 3, 1)
    rest = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, -1.0)]
    positives = Positives.of(torch.tensor([0, 1, 1, 2, 3]), 0, 5)
    assert torch.autograd.gradcheck(lambda *x: sigmoid_contrast(*x, positives, 0.4, (2, 3)), (a, b, *rest))


@pytest.mark.parametrize("scale", [10.0, 80.0])
def test_equals_open_clip(scale):
    a, b = random_vectors(257, 48, 2, torch.float32)
    loss = SigLIP("a", "b", initial_logit_scale=scale)
    expected = SigLipLoss()(a, b, loss.logit_scale, loss.logit_bias)
    assert_same(loss(embeddings(a, b)), expected, [a, b, loss.scale.log, loss.logit_bias], 2e-6)


def test_absent_rows_are_neither_anchors_nor_negatives():
    a, b = random_vectors(12, 6, 3)
    present = {"a": torch.arange(12) % 5 != 3, "b": torch.arange(12) % 4 != 2}
    both = present["a"] & present["b"]
    group = torch.tensor([0, 0, 0, 1, 2, 1, 3, 4, 5, 6, 7, 7])
    loss = SigLIP("a", "b").double()
    n = int(both.sum())
    expected = plain(a[both], b[both], loss.logit_scale, loss.logit_bias, group[both], 0, n, 1 / n)
    inputs = [a, b, loss.scale.log, loss.logit_bias]
    assert_same(loss(embeddings(a, b, group, present=present)), expected, inputs, 1e-12)


@pytest.mark.parametrize("cuts", [(0, 5, 12), (0, 0, 3, 9, 12)])
def test_parts_add_up_to_the_whole(cuts):
    a, b = random_vectors(12, 6, 4)
    present = {"a": torch.arange(12) % 5 != 3, "b": torch.arange(12) % 4 != 2}
    group = torch.tensor([0, 1, 0, 2, 3, 4, 5, 1, 6, 7, 8, 0])
    loss = SigLIP("a", "b").double()
    parts = sum(loss(embeddings(a, b, group, present=present, rows=rows)) for rows in pairwise(cuts))
    whole = loss(embeddings(a, b, group, present=present))
    assert_same(parts, whole, [a, b, loss.scale.log, loss.logit_bias], 1e-12)


@pytest.mark.parametrize("case", ["absent", "missing", "no rows"])
def test_empty_pair_is_zero_with_zero_gradients(case):
    a, b = random_vectors(0 if case == "no rows" else 4, 3, 5, torch.float32)
    values = embeddings(a, b)
    if case == "absent":
        values = replace(values, present={"a": torch.zeros(4, dtype=torch.bool), "b": values.present["b"]})
    if case == "missing":
        values = replace(values, vectors={"b": b}, present={"b": values.present["b"]})
    loss = SigLIP("a", "b")
    value = loss(values)
    assert value.item() == 0.0
    value.backward()
    for parameter in (loss.scale.log, loss.logit_bias, b):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_without_gradients_only_the_value_is_computed():
    a, b = random_vectors(9, 4, 6)
    loss = SigLIP("a", "b").double()
    expected = loss(embeddings(a, b))
    with torch.no_grad():
        found = loss(embeddings(a, b))
    assert not found.requires_grad
    assert found.item() == expected.item()
    slope = torch.autograd.grad(expected, [b])[0]
    (alone,) = torch.autograd.grad(loss(embeddings(a.detach(), b)), [b])
    assert torch.allclose(alone, slope, rtol=1e-12)
