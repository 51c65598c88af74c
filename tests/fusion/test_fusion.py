"""What both fusions promise about missing modalities."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.fusion import ConcatMLP, TransformerFusion

NAMES = ["audio", "image", "text"]


def build(kind):
    torch.manual_seed(0)
    fusion = {"concat": ConcatMLP, "transformer": TransformerFusion}[kind]()
    fusion.build(NAMES, 16)
    return fusion.eval()


@pytest.mark.parametrize("kind", ["concat", "transformer"])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=1, max_size=6),
    garbage=st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0]),
)
def test_absent_rows_do_not_matter(kind, rows, garbage):
    fusion = build(kind)
    present = {name: torch.tensor([name in row for row in rows]) for name in NAMES}
    clean = {name: torch.randn(len(rows), 16, requires_grad=True) for name in NAMES}
    dirty = {name: torch.where(present[name][:, None], v.detach(), garbage) for name, v in clean.items()}
    result = fusion(clean, present)
    assert result.isfinite().all()
    assert torch.equal(result, fusion(dirty, present))
    for i, row in enumerate(rows):  # alone, with the absent modalities missing altogether
        alone = fusion({n: clean[n][i : i + 1] for n in row}, {n: torch.tensor([True]) for n in row})
        torch.testing.assert_close(result[i], alone[0], atol=1e-5, rtol=0)
    result.square().sum().backward()
    for name in NAMES:
        assert clean[name].grad.isfinite().all()
        assert (clean[name].grad[~present[name]] == 0).all()
        assert (clean[name].grad[present[name]] != 0).any(1).all()


@pytest.mark.parametrize("kind", ["concat", "transformer"])
def test_garbage_in_absent_rows_gives_finite_gradients(kind):
    fusion = build(kind)
    vectors = {name: torch.full((2, 16), math.nan, requires_grad=True) for name in NAMES}
    vectors["text"] = torch.randn(2, 16, requires_grad=True)
    present = {name: torch.tensor([name == "text"] * 2) for name in NAMES}
    fusion(vectors, present).sum().backward()
    gradients = [v.grad for v in vectors.values()] + [p.grad for p in fusion.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", ["concat", "transformer"])
def test_subsets_differ_and_order_of_the_dict_does_not(kind):
    fusion = build(kind)
    vector = torch.randn(1, 16)
    subsets = [s for n in (1, 2, 3) for s in itertools.combinations(NAMES, n)]
    here = torch.tensor([True])
    results = [fusion(dict.fromkeys(s, vector), dict.fromkeys(s, here)) for s in subsets]
    for one, other in itertools.combinations(results, 2):
        assert (one - other).abs().max() > 1e-4
    again = [fusion(dict.fromkeys(s[::-1], vector), dict.fromkeys(s[::-1], here)) for s in subsets]
    assert all(torch.equal(one, other) for one, other in zip(results, again, strict=True))


@pytest.mark.parametrize("kind", ["concat", "transformer"])
def test_unknown_and_no_modalities_are_refused(kind):
    with pytest.raises(ValueError, match="not for smell"):
        build(kind)({"smell": torch.zeros(1, 16)}, {"smell": torch.tensor([True])})
    with pytest.raises(ValueError, match="at least one"):
        build(kind)({}, {})


@pytest.mark.parametrize("kind", ["concat", "transformer"])
def test_weights_follow_the_seed_and_round_trip(kind):
    one, other = build(kind), build(kind)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert set(one.state_dict()) == {name for name, _ in one.named_parameters()}
