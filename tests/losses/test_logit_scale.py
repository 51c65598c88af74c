"""The bound of the learned factor."""

import math

import pytest
import torch

from mmalign.losses import LogitScale


def test_starts_where_it_is_told():
    assert LogitScale(1 / 0.07)().item() == pytest.approx(1 / 0.07, rel=1e-6)


def test_never_exceeds_its_bound_and_comes_back():
    scale = LogitScale(99.0, maximum=100.0)
    optimizer = torch.optim.SGD(scale.parameters(), lr=0.1)
    for direction, limit in ((-1.0, 100.0), (1.0, 99.9)):  # up for a while, then down
        for _ in range(5):
            optimizer.zero_grad()
            value = scale()
            assert value.item() <= 100.0001
            (direction * value).backward()
            optimizer.step()
        assert scale.eval()().item() <= limit + 1e-4
        scale.train()
    assert scale.log.item() < math.log(100)


def test_evaluation_leaves_the_parameter_alone():
    scale = LogitScale(50.0).eval()
    with torch.no_grad():
        scale.log.fill_(9.0)
    value = scale()
    assert value.item() == pytest.approx(100.0, rel=1e-5)
    assert scale.log.item() == 9.0
    value.backward()
    assert scale.log.grad is not None
    assert scale.log.grad.item() == pytest.approx(100.0, rel=1e-5)


@pytest.mark.parametrize("initial", [0.0, -1.0, 101.0])
def test_an_impossible_start_is_refused(initial):
    with pytest.raises(ValueError, match="100"):
        LogitScale(initial)


def test_a_fixed_one_is_no_parameter_and_is_saved_all_the_same():
    fixed = LogitScale(20.0, learned=False).requires_grad_(True)  # as a stage asks of its losses
    assert not list(fixed.parameters())
    assert fixed().item() == pytest.approx(20.0)
    fixed.load_state_dict(LogitScale(30.0).state_dict())
    assert fixed().item() == pytest.approx(30.0)
