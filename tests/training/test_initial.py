"""What is taken over from a checkpoint of another model."""

import pytest
import torch
from torch import nn

from mmalign.encoders import TextBytes
from mmalign.fusion import ConcatMLP
from mmalign.losses import InfoNCE
from mmalign.model import Aligner
from mmalign.training.initial import take_over


def holder(*modalities, width=16, fusion=True, loss="a_b"):
    towers = {name: TextBytes(width=width, depth=1, heads=2, max_length=8) for name in modalities}
    model = Aligner(towers, dim=8, fusion=ConcatMLP(hidden=4) if fusion else None)
    return nn.ModuleDict({"model": model, "losses": nn.ModuleDict({loss: InfoNCE("a", "b")})})


def facts(*modalities, pairs=()):
    return {"spec": dict.fromkeys(modalities), "trained_pairs": list(pairs)}


def same(one, two, prefix):
    keys = [key for key in one.state_dict() if key.startswith(prefix)]
    return bool(keys) and all(torch.equal(one.state_dict()[key], two.state_dict()[key]) for key in keys)


def test_all_of_the_same_model():
    old, new = holder("a", "b"), holder("a", "b")
    pairs = [["a", "b"], ["a", "fused"], ["b"]]
    taken = take_over(new, old.state_dict(), facts("a", "b", pairs=pairs), "old")
    assert (taken.fresh, taken.left_out, taken.pairs, str(taken)) == ([], [], pairs, "")
    assert same(old, new, "")


@pytest.mark.parametrize("there", [("a", "b"), ("a", "b", "d")])
def test_a_fusion_for_other_modalities_starts_anew(there):
    """Also where there are as many of them, and the shapes would fit."""
    old, new = holder(*there), holder("a", "b", "c", loss="b_c")
    built = new["model"].fusion.mlp[0].weight.clone()
    pairs = [["a", "b"], ["a", "fused"]]
    taken = take_over(new, old.state_dict(), facts(*there, pairs=pairs), "old")
    assert sorted(taken.fresh) == ["encoder.c", "fusion", "loss.b_c", "projection.c"]
    assert taken.left_out == (["encoder.d", "projection.d", "loss.a_b"] if "d" in there else ["loss.a_b"])
    assert taken.pairs == [["a", "b"]]
    assert same(new, old, "model.encoders.a.")
    assert same(new, old, "model.projections.b.")
    assert torch.equal(new["model"].fusion.mlp[0].weight, built)


def test_what_does_not_fit_is_refused_with_its_name():
    old, new = holder("a", "b"), holder("a", "b", width=32)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    with pytest.raises(ValueError, match=r"^old: its encoder\.a does not fit .*: model\.encoders\.a\..* there, "):
        take_over(new, old.state_dict(), facts("a", "b"), "old")
    bias = "model.projections.b.linear.bias"
    partly = {key: value for key, value in old.state_dict().items() if key != bias}
    with pytest.raises(ValueError, match=rf"its projection\.b does not fit .*: it lacks {bias}"):
        take_over(holder("a", "b"), partly, facts("a", "b"), "old")
    assert all(torch.equal(value, before[key]) for key, value in new.state_dict().items())


def test_nothing_in_common_is_refused():
    with pytest.raises(ValueError, match=r"^old: none of its components is one of this model: encoder\.a, "):
        take_over(holder("a", "b"), holder("c", "d", loss="c_d").state_dict(), facts("c", "d"), "old")
