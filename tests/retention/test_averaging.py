"""EMA, WiSE and its sweep."""

import pytest
import torch

from mmalign.retention import EMA, WiSE
from mmalign.retention.wise import interpolate, of_modalities, sweep


def test_ema_is_the_average_of_the_weights_after_each_step(workshop) -> None:
    plan, model = workshop.plans()[0], workshop.model()
    name = "encoders.a.first.weight"
    expected = model.state_dict()[name].clone()
    weights: list[torch.Tensor] = []
    workshop.train(plan, model, {"ema": EMA(0.3)}, watch=lambda *_: weights.append(model.state_dict()[name].clone()))
    assert len(weights) == plan.steps
    for step, weight in enumerate(weights, 1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(model.state_dict()[name], expected)
    assert not torch.equal(model.state_dict()[name], weights[-1])


def test_ema_goes_on_after_a_kill(workshop) -> None:
    plan, whole, part, again = workshop.plans()[0], workshop.model(), workshop.model(), workshop.model()
    workshop.train(plan, whole, {"ema": EMA(0.5)})
    state = workshop.train(plan, part, {"ema": EMA(0.5)}, stop=3)
    workshop.train(plan, again, {"ema": EMA(0.5)}, resume=state)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_wise_interpolates_what_earlier_stages_trained_and_nothing_else(workshop) -> None:
    plans, model = workshop.plans(), workshop.model()
    workshop.train(plans[0], model, {"wise": WiSE(0.25)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after: dict[str, torch.Tensor] = {}

    def watch(*_: object) -> None:
        after.update({name: value.clone() for name, value in model.state_dict().items()})

    workshop.train(plans[1], model, {"wise": WiSE(0.25)}, watch=watch)
    for name, value in model.state_dict().items():
        new = ".c." in name
        expected = after[name] if new else 0.75 * before[name] + 0.25 * after[name]
        torch.testing.assert_close(value, expected)
    assert not torch.equal(before["encoders.b.first.weight"], after["encoders.b.first.weight"])
    # the sweep finds the same weights from the two checkpoints alone
    [(alpha, swept)] = sweep(before, after, [0.25], of_modalities({"a", "b"}))
    assert alpha == 0.25
    for name, value in model.state_dict().items():
        assert torch.equal(value, swept[name])


def test_the_first_stage_interpolates_only_what_is_named(workshop) -> None:
    plan, model = workshop.plans()[0], workshop.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    workshop.train(plan, model, {"wise": WiSE(0.0, components=["encoder.b"])})
    changed = {n.rsplit(".", 2)[0] for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"encoders.a", "projections.a", "projections.b"}
    with pytest.raises(ValueError, match="tower"):
        WiSE(0.5, components=["tower"]).prepare(plan, model)


def test_the_ends_of_the_interpolation_are_exact_and_integers_are_those_of_after() -> None:
    before = {"w": torch.randn(5), "n": torch.tensor(3)}
    after = {"w": torch.randn(5), "n": torch.tensor(7)}
    assert torch.equal(interpolate(before, after, 0.0)["w"], before["w"])
    assert torch.equal(interpolate(before, after, 1.0)["w"], after["w"])
    assert interpolate(before, after, 0.0)["n"] == 7
    with pytest.raises(ValueError, match="'n'"):
        interpolate({"w": before["w"]}, after, 0.5)


def test_names_in_checkpoints_belong_to_modalities() -> None:
    belongs = of_modalities({"image", "text"})
    assert belongs("model.encoders.image.trunk.weight")
    assert belongs("projections.text.linear.bias")
    assert belongs("model.fusion.layer.weight")
    assert not belongs("model.encoders.audio.trunk.weight")
    assert not belongs("losses.image.scale")


@pytest.mark.parametrize("wrong", [lambda: EMA(1.0), lambda: WiSE(1.5)])
def test_values_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"decay|alpha"):
        wrong()
