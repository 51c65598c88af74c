"""The tiled softmax contrast against the full matrix, against open_clip, and through its contract."""

from dataclasses import replace
from itertools import pairwise

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmalign.batch import Embeddings
from mmalign.losses import InfoNCE
from mmalign.losses.softmax_tiles import softmax_contrast
from mmalign.losses.tiles import Positives


def plain(a: Tensor, b: Tensor, scale: Tensor, group: Tensor, start: int, stop: int, weights: tuple[float, float]):
    """The definition, with the whole matrix in sight."""
    s = scale * a[start:stop] @ b.T
    same = (group[start:stop, None] == group[None]).to(s.dtype)
    rows = (s.logsumexp(1) - (s * same).sum(1) / same.sum(1)).sum()
    columns = (s.logsumexp(0) - (s * same).sum(0) / same.sum(0)).sum() if weights[1] else 0.0
    return weights[0] * rows + weights[1] * columns


def random_vectors(batch: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    return tuple(F.normalize(v, dim=1).to(dtype).requires_grad_() for v in (a, b + a / 3))  # type: ignore[return-value]


def embeddings(a: Tensor, b: Tensor, group: Tensor | None = None, **changes) -> Embeddings:
    everywhere = torch.ones(len(a), dtype=torch.bool)
    group = torch.arange(len(a)) if group is None else group
    return replace(Embeddings({"a": a, "b": b}, {"a": everywhere, "b": everywhere}, group), **changes)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float, floor: float = 1e-3) -> None:
    for f, e in zip(found, expected, strict=True):
        error = (f.double() - e.double()).norm() / e.double().norm().clamp(min=floor)
        assert error <= tolerance, f"relative error {error:.2e}"


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 23),
    dim=st.integers(1, 9),
    groups=st.integers(1, 40),
    scale=st.sampled_from([0.5, 14.3, 60.0, 100.0, 700.0, 5000.0]),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    both=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_tiles_equal_the_full_matrix(batch, dim, groups, scale, tile, part, both, seed):
    a, b = random_vectors(batch, dim, seed)
    group = torch.randint(groups, (batch,), generator=torch.Generator().manual_seed(seed))
    if groups > 30:
        group = torch.randperm(batch)
    start, stop = (0, batch) if both else sorted(round(p * batch) for p in part)
    weights = (0.3, 0.7 if both else 0.0)
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    inputs = [a, b, logit_scale]
    expected = plain(*inputs, group, start, stop, weights)
    found = softmax_contrast(a[start:stop], b, logit_scale, Positives.of(group, start, stop), *weights, tile)
    floor = max(1.0, scale / 10)  # a loss of 0 is a difference of two numbers of this size
    assert_close([found], [expected], 1e-12, floor)
    # at a scale of 5,000, with one channel and all of a group, nothing is left of the gradients but rounding: 1.1e-12
    tolerance = 1e-12 if scale < 5000 else 1e-11
    assert_close(gradients(found, inputs), gradients(expected, inputs), tolerance, floor)


@pytest.mark.parametrize("scale", [14.3, 50.0, 100.0])
@pytest.mark.parametrize("repeated", [False, True])
def test_float32_agrees_to_a_millionth(scale, repeated):
    a, b = random_vectors(300, 64, 0, torch.float32)
    group = torch.arange(300) // (3 if repeated else 1)
    logit_scale = torch.tensor(scale, requires_grad=True)
    found = softmax_contrast(a, b, logit_scale, Positives.of(group, 0, 300), 1 / 600, 1 / 600, (64, 100))
    exact = [t.detach().double().requires_grad_() for t in (a, b, logit_scale)]
    expected = plain(*exact, group, 0, 300, (1 / 600, 1 / 600))
    assert_close([found], [expected], 1e-6)
    assert_close(gradients(found, [a, b, logit_scale]), gradients(expected, exact), 1e-6)


@pytest.mark.parametrize("scale", [14.3, 100.0, 5000.0])
@pytest.mark.parametrize("tile", [(12, 12), (5, 7)])
def test_a_second_backward_pass_finds_the_same(scale, tile):
    """The first has used up the tile that the forward pass left."""
    a, b = random_vectors(12, 6, 0)
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    loss = softmax_contrast(a, b, logit_scale, Positives.of(torch.arange(12) // 2, 0, 12), 0.5, 0.5, tile)
    first, second = (torch.autograd.grad(loss, [a, b, logit_scale], retain_graph=True) for _ in range(2))
    assert_close(list(second), list(first), 1e-12)


def test_several_losses_at_a_time_do_not_disturb_each_other():
    a, b = random_vectors(12, 6, 0)
    c, d = random_vectors(12, 6, 1)
    loss = InfoNCE("a", "b").double()
    one, other = loss(embeddings(a, b)), loss(embeddings(c, d))
    expected = gradients(loss(embeddings(a, b)), [a, b]) + gradients(loss(embeddings(c, d)), [c, d])
    assert_close(gradients(one + other, [a, b, c, d]), expected, 1e-12)


def test_gradients_by_finite_differences():
    a, b = random_vectors(5, 3, 1)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    positives = Positives.of(torch.tensor([0, 1, 1, 2, 3]), 0, 5)
    assert torch.autograd.gradcheck(lambda *x: softmax_contrast(*x, positives, 0.4, 0.6, (2, 3)), (a, b, scale))


@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_equals_open_clip(temperature):
    a, b = random_vectors(257, 48, 2, torch.float32)
    loss = InfoNCE("a", "b", initial_temperature=temperature)
    found = loss(embeddings(a, b))
    expected = open_clip.ClipLoss()(a, b, loss.logit_scale)
    inputs = [a, b, loss.scale.log]
    assert_close([found], [expected], 1e-6)
    assert_close(gradients(found, inputs), gradients(expected, inputs), 2e-6)


def test_absent_rows_are_neither_anchors_nor_negatives():
    a, b = random_vectors(12, 6, 3)
    has_a = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1], dtype=torch.bool)
    has_b = torch.tensor([1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    both = has_a & has_b
    group = torch.tensor([0, 0, 0, 1, 2, 1, 3, 4, 5, 6, 7, 7])
    loss = InfoNCE("a", "b").double()
    found = loss(embeddings(a, b, group, present={"a": has_a, "b": has_b}))
    expected = plain(a[both], b[both], loss.logit_scale, group[both], 0, int(both.sum()), (0.5, 0.5)) / both.sum()
    assert_close([found], [expected], 1e-12)
    inputs = [a, b, loss.scale.log]
    slopes = gradients(found, inputs)
    assert_close(slopes, gradients(expected, inputs), 1e-12)
    assert not slopes[0][~both].any()


@pytest.mark.parametrize("cuts", [(0, 12), (0, 5, 12), (0, 0, 3, 9, 12)])
def test_parts_add_up_to_the_whole(cuts):
    a, b = random_vectors(12, 6, 4)
    present = {"a": torch.arange(12) % 5 != 3, "b": torch.arange(12) % 4 != 2}
    group = torch.tensor([0, 1, 0, 2, 3, 4, 5, 1, 6, 7, 8, 0])
    loss = InfoNCE("a", "b").double()
    inputs = [a, b, loss.scale.log]
    whole = loss(embeddings(a, b, group, present=present))
    parts = [loss(embeddings(a, b, group, present=present, rows=rows)) for rows in pairwise(cuts)]
    assert_close([sum(parts)], [whole], 1e-12)
    assert_close(gradients(sum(parts), inputs), gradients(whole, inputs), 1e-12)


@pytest.mark.parametrize("case", ["absent", "missing", "no rows", "no own rows"])
def test_empty_pair_is_zero_with_zero_gradients(case):
    a, b = random_vectors(0 if case == "no rows" else 4, 3, 5, torch.float32)
    values = embeddings(a, b)
    if case == "absent":
        values = replace(values, present={"a": torch.zeros(4, dtype=torch.bool), "b": values.present["b"]})
    if case == "missing":
        values = replace(values, vectors={"b": b}, present={"b": values.present["b"]})
    if case == "no own rows":
        values = replace(values, rows=(2, 2))
    loss = InfoNCE("a", "b")
    value = loss(values)
    assert value.item() == 0.0
    value.backward()
    assert loss.scale.log.grad is not None
    assert loss.scale.log.grad.item() == 0.0
    assert b.grad is not None
    assert not b.grad.any()


def test_frozen_side_costs_no_gradient():
    a, b = random_vectors(7, 4, 6)
    loss = InfoNCE("a", "b").double()
    expected = gradients(loss(embeddings(a, b)), [a, loss.scale.log])
    assert_close(gradients(loss(embeddings(a, b.detach())), [a, loss.scale.log]), expected, 1e-12)
    only_scale = gradients(loss(embeddings(a.detach(), b.detach())), [loss.scale.log])
    assert_close(only_scale, expected[1:], 1e-12)


def test_half_precision_vectors_under_autocast():
    a, b = random_vectors(40, 8, 7, torch.float32)
    loss = InfoNCE("a", "b")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(embeddings(a.bfloat16(), b.bfloat16()))
    assert found.dtype == torch.float32
    assert_close([found], [loss(embeddings(a.bfloat16().float(), b.bfloat16().float()))], 1e-7)
    found.backward()
    assert torch.isfinite(a.grad).all()


def test_nan_in_a_vector_is_not_hidden():
    a, b = random_vectors(6, 3, 8)
    with torch.no_grad():
        a[2, 1] = torch.nan
    assert InfoNCE("a", "b")(embeddings(a, b)).isnan()


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="initial_temperature"):
        InfoNCE("a", "b", initial_temperature=0.0)
    with pytest.raises(ValueError, match="100"):
        InfoNCE("a", "b", initial_temperature=0.001)
    with pytest.raises(ValueError, match="'a' has 3 channels and 'b' has 4"):
        InfoNCE("a", "b")(embeddings(torch.zeros(2, 3), torch.zeros(2, 4)))


def test_heads_are_contrasted_one_by_one():
    a, b = random_vectors(7, 12, 0)
    parts = [(F.normalize(x, dim=1), F.normalize(y, dim=1)) for x, y in zip(a.chunk(3, 1), b.chunk(3, 1), strict=True)]
    alone = torch.stack([InfoNCE("a", "b")(embeddings(x, y)) for x, y in parts]).mean()
    together = InfoNCE("a", "b", heads=3)(embeddings(a, b))
    assert_close([together], [alone], 1e-12)
    assert_close(gradients(together, [a, b]), gradients(alone, [a, b]), 1e-12)


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="12 channels cannot be cut into 5 heads"):
        InfoNCE("a", "b", heads=5)(embeddings(*random_vectors(4, 12, 0)))
    with pytest.raises(ValueError, match="at least 1"):
        InfoNCE("a", "b", heads=0)
