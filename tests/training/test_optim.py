"""Parameter groups and the schedule."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from mmalign.losses import InfoNCE, SigLIP
from mmalign.training.optim import Optimization, WarmupCosine, parameter_groups, undecayed


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.position = nn.Parameter(torch.zeros(5, 3))

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def components() -> dict[str, nn.Module]:
    return {"encoder.image": Tower(), "encoder.text": Tower(), "loss.a": InfoNCE("x", "y"), "loss.b": SigLIP("x", "y")}


def test_only_matrices_decay():
    assert undecayed(nn.ModuleDict({"t": Tower()})) == {"t.linear.bias", "t.norm.weight", "t.norm.bias", "t.position"}
    groups = {group["name"]: group for group in parameter_groups(components(), 1e-3, {}, 0.2)}
    assert [p.shape for p in groups["encoder.image"]["params"]] == [(3, 4)]
    assert len(groups["encoder.image (no decay)"]["params"]) == 4
    assert "loss.a" not in groups
    assert groups["loss.a (no decay)"]["weight_decay"] == 0.0
    assert len(groups["loss.b (no decay)"]["params"]) == 2
    assert groups["encoder.text"]["weight_decay"] == 0.2


def test_components_have_their_own_rates_and_the_last_match_counts():
    rates = {"encoder.*": 1e-5, "encoder.text": 3e-5}
    groups = {group["name"]: group["lr"] for group in parameter_groups(components(), 1e-3, rates, 0.1)}
    assert groups["encoder.image"] == groups["encoder.image (no decay)"] == 1e-5
    assert groups["encoder.text"] == 3e-5
    assert groups["loss.a (no decay)"] == 1e-3


def test_every_trainable_parameter_is_in_one_group():
    parts = components()
    parts["encoder.text"].linear = parts["encoder.image"].linear  # shared
    parts["encoder.image"].norm.requires_grad_(False)
    found = [p for group in parameter_groups(parts, 1e-3, {}, 0.1) for p in group["params"]]
    expected = {p for part in parts.values() for p in part.parameters() if p.requires_grad}
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match=r"'encoder.audio' matches none of the components encoder.image"):
        parameter_groups(components(), 1e-3, {"encoder.audio": 1e-5}, 0.1)
    frozen = Tower().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is trainable"):
        parameter_groups({"encoder.image": frozen}, 1e-3, {}, 0.1)
    with pytest.raises(ValueError, match="warm-up takes 11 steps, but the training has only 10"):
        Optimization(warmup_steps=11).check(10)


def test_warm_up_then_half_a_cosine():
    factor = WarmupCosine(warmup_steps=4, steps=14)
    factors = [factor(step) for step in range(15)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[9] == pytest.approx(0.5)
    assert factors[14] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(factors[4:]))
    assert WarmupCosine(0, 10)(0) == 1.0
    assert [WarmupCosine(2, 10, decay=False)(step) for step in (1, 2, 9, 50)] == pytest.approx([2 / 3, 1, 1, 1])
    assert WarmupCosine(10, 10)(9) < 1.0


def test_built_optimizer_follows_the_schedule():
    torch.manual_seed(0)
    parts = components()
    settings = Optimization(
        learning_rate=0.1, learning_rates={"encoder.text": 0.01}, warmup_steps=1, schedule="constant"
    )
    built = settings.build(parts, steps=5)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert built["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(3):
        sum(p.square().sum() for part in parts.values() for p in part.parameters()).backward()
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    assert [rate["encoder.image"] for rate in rates] == pytest.approx([0.05, 0.1, 0.1])
    assert [rate["encoder.text"] for rate in rates] == pytest.approx([0.005, 0.01, 0.01])


def test_built_optimizer_is_adamw_and_may_be_clipped_in_mixed_precision():
    from lightning.pytorch.plugins.precision import MixedPrecision

    torch.manual_seed(0)
    tower, plain = Tower(), Tower()
    plain.load_state_dict(tower.state_dict())
    settings = Optimization(learning_rate=0.01, weight_decay=0.2, warmup_steps=0, schedule="constant")
    ours = settings.build({"encoder.image": tower}, 5)["optimizer"]
    groups = parameter_groups({"encoder.image": plain}, 0.01, {}, 0.2)
    peer = torch.optim.AdamW(groups, lr=0.01, betas=settings.betas, eps=settings.eps, foreach=False)
    x = torch.randn(7, 4)
    for _ in range(5):
        for module, optimizer in ((tower, ours), (plain, peer)):
            optimizer.zero_grad()
            (module.norm(module.linear(x)).pow(3).sum() + module.position.exp().sum()).backward()
            MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)
            optimizer.step()
    for name, value in tower.named_parameters():
        torch.testing.assert_close(value, plain.get_parameter(name))
