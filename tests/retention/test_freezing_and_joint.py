"""Frozen changes nothing, exactly; joint sees everything."""

import pytest
import torch

from mmalign.data.config import ShardData
from mmalign.retention import ZSCL, Frozen, Joint, LwF, WiSE


def test_a_frozen_tower_changes_by_exactly_zero_and_past_projections_after_their_stage(workshop) -> None:
    plans, model = workshop.plans(), workshop.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    workshop.train(plans[0], model, {"frozen": Frozen(["encoder.b"])})
    after_one = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name for name in before if not torch.equal(before[name], after_one[name])}
    assert {name.rsplit(".", 2)[0] for name in changed} == {"encoders.a", "projections.a", "projections.b"}
    workshop.train(plans[1], model, {"frozen": Frozen(["encoder.b"])})
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, after_one[name])}
    assert {name.rsplit(".", 2)[0] for name in changed} == {"encoders.c", "projections.c"}


def test_frozen_overrides_what_the_stage_says_about_the_same_component(workshop) -> None:
    plan, model = workshop.plans()[1].clone(), workshop.model()
    plan.trainable = {"encoder.b": "all", "encoder.*": 1}
    Frozen(["encoder.b"], after_first=[]).prepare(plan, model)
    assert list(plan.trainable.items()) == [("encoder.*", 1), ("encoder.b", "none")]
    with pytest.raises(ValueError, match=r"encoder\.x"):
        Frozen(["encoder.x"]).prepare(plan, model)


def test_joint_has_all_data_and_losses_in_equal_shares(workshop) -> None:
    plans, model = workshop.plans(), workshop.model()
    plans[0].data["more"] = workshop.data("more", 6, "ab", 4, weight=3.0)
    plans[1].past = [plans[0]]
    plan = plans[1].clone()
    Joint().prepare(plan, model)
    assert {name: data.weight for name, data in plan.data.items()} == {"ab": 0.25, "more": 0.75, "bc": 1.0}
    assert plan.losses == {"ab": 1.0, "bc": 1.0}
    assert plan.pairs == {"ab": ("a", "b"), "bc": ("b", "c")}
    plan = plans[1].clone()
    Joint(shares="samples").prepare(plan, model)
    assert {name: data.weight for name, data in plan.data.items()} == {"ab": 24, "more": 6, "bc": 24}
    names: list[str] = []
    workshop.train(plans[1], model, {"joint": Joint()}, watch=lambda batch, *_: names.extend(batch.keys))
    counts = {name: sum(key.startswith(f"{name}/") for key in names) for name in ("ab", "more", "bc")}
    assert counts == {"ab": 6, "more": 18, "bc": 24}


def test_joint_with_the_future_gives_each_stage_what_it_draws_by_itself(workshop) -> None:
    plans, model = workshop.plans(), workshop.model()
    plans[0].future, plans[0].steps, plans[1].steps = [plans[1]], 10, 30
    plan = plans[0].clone()
    Joint(shares="steps", future=True).prepare(plan, model)
    assert list(plan.data) == ["ab", "bc"]
    assert plan.data["bc"].weight == 3 * plan.data["ab"].weight
    assert plan.losses == {"ab": 1.0, "bc": 1.0}
    assert plan.pairs == {"ab": ("a", "b"), "bc": ("b", "c")}
    assert Joint(future=True).acts_at_once
    plan = plans[0].clone()
    Joint(shares="steps").prepare(plan, model)
    assert (list(plan.data), plan.losses) == (["ab"], {"ab": 1.0})


def test_joint_adds_the_shares_of_one_data_set_and_renames_another_of_its_name(workshop) -> None:
    plans, model = workshop.plans(), workshop.model()
    plans[1].data = dict(plans[0].data)
    plan = plans[1].clone()
    Joint().prepare(plan, model)
    assert {name: data.weight for name, data in plan.data.items()} == {"ab": 2.0}
    plans[1].data = {"ab": ShardData("elsewhere")}
    plan = plans[1].clone()
    Joint().prepare(plan, model)
    assert {name: data.shards for name, data in plan.data.items()} == {
        "ab": plans[0].data["ab"].shards,
        "two-ab": "elsewhere",
    }


def test_what_was_aligned_before_the_run_is_past(workshop):
    model, plan = workshop.model(), workshop.plans()[0]
    plan.initial_pairs = [("b", "a")]
    Frozen(components=[]).prepare(plan, model)
    assert plan.trainable == {"projection.a": "none", "projection.b": "none"}
    lwf, zscl, wise = LwF(), ZSCL(reference=workshop.data("ab", 8, "ab")), WiSE(alpha=0.0)
    zscl.prepare(plan, model)
    assert set(plan.replay) == {"zscl.reference"}
    assert lwf.reaches(plan, model) == {f"{part}.{name}" for part in ("encoder", "projection") for name in "ab"}
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wise.begin(plan, model, {})
    for weight in model.parameters():
        weight.data.add_(1)
    wise.end(plan, model, {})
    same = {name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])}
    assert same == {name for name in before if name.split(".")[1] in "ab"}
