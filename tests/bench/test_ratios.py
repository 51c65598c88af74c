"""Statistics, bars, and what the catalogue promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.bench.base import Benchmark, Ceilings, Quantity, Sample, Settings
from mmalign.bench.catalogue import NAMES, find
from mmalign.bench.growth import exponent
from mmalign.bench.ratios import Row, difference, reaches, rows, verdict
from mmalign.bench.scaling import Cluster, Training, bytes_per_step, flops_per_step, loads
from mmalign.bench.steps import WARM_UP, step_seconds

POSITIVE = st.floats(1e-3, 1e3)


class Two(Benchmark):
    name, title, sides = "two", "", ("a", "b")
    quantities = (Quantity("time", "seconds", "a", "b", "b", "<= 1"),)

    def roofline(self, quantity, medians, ceilings):
        return f"a takes {medians['a']['seconds']:g}"


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=7))
def test_the_ratio_is_paired(tmp_path_factory, pairs):
    samples = [{"a": Sample({"seconds": a}), "b": Sample({"seconds": b})} for a, b in pairs]
    (row,) = rows(Two(Settings(), tmp_path_factory.getbasetemp()), samples, {}, Ceilings(1.0, 1.0, 1.0, 1.0))
    ratios = sorted(a / b for a, b in pairs)
    assert row.ratio_median == pytest.approx(float(np.median(ratios)))
    assert (row.ratio_min, row.ratio_max) == (pytest.approx(ratios[0]), pytest.approx(ratios[-1]))
    assert row.holds == (row.ratio_median <= 1)
    assert bool(row.roofline) != row.holds  # a missed bar is explained, one that is reached needs nothing


def test_what_was_not_measured_never_holds(tmp_path):
    (row,) = rows(Two(Settings(), tmp_path), [], {"b": "b is not installed"}, Ceilings(1.0, 1.0, 1.0, 1.0))
    assert not row.holds
    assert row.note == "b is not installed"
    assert set(row.to_dict()) >= {
        "benchmark",
        "peer",
        "quantity",
        "ratio_median",
        "ratio_min",
        "ratio_max",
        "bar",
        "holds",
    }


def test_bars():
    assert reaches(0.4, "<= 0.4")
    assert not reaches(0.41, "<= 0.4")
    assert reaches(20.0, ">= 20")
    assert not reaches(math.nan, "<= 1")
    with pytest.raises(ValueError, match="about 3"):
        reaches(1.0, "about 3")


def test_a_roofline_says_how_much_of_the_machine_a_bar_asks_for():
    assert "out of reach" in verdict(0.45, "<= 0.4")
    assert "asks for 75% of" in verdict(0.3, "<= 0.4")
    assert "does not explain" in verdict(0.31, "<= 0.4")
    assert "out of reach" in verdict(4.5, ">= 5")
    assert "does not explain" in verdict(0.31, "<= 0.4", 0.39)
    assert "asks for 95% of what the machine allows, and is out of reach of op" in verdict(0.38, "<= 0.4", 0.41)
    assert "asks for 50% of" in verdict(10.0, ">= 5")


def test_differences():
    a, b = np.array([1.0, 10.0]), np.array([1.1, 10.0])
    assert difference(a, b, "absolute") == pytest.approx(0.1)
    assert difference(a, b, "relative") == pytest.approx(0.01)
    assert difference(a, b, "elementwise") == pytest.approx(0.1 / 1.1)
    assert difference(a, b[:1], "absolute") == math.inf
    assert difference(np.array([math.nan]), np.array([math.nan]), "absolute") == math.inf


def test_every_benchmark_says_what_it_does():
    for name in NAMES:
        kind = find(name)
        assert kind.name == name
        assert kind.pairs >= 5
        for quantity in kind.quantities:
            reaches(1.0, quantity.bar)
            assert quantity.side in kind.sides
            assert quantity.other is None or quantity.other in kind.sides
    with pytest.raises(ValueError, match="infonce, infonce-32768"):
        find("no-such")


def test_exponents_are_found():
    sizes = [100, 200, 400, 800]
    assert exponent(sizes, [3.0 * n**2 for n in sizes]) == pytest.approx(2)
    assert exponent(sizes, [7.0] * 4) == pytest.approx(0)


def test_steps_after_the_first_count():
    times = [0.0] * (WARM_UP - 1) + [100.0, 101.0, 102.0, 105.0]
    assert step_seconds(times) == 1.0


def test_paper_agrees_with_small_numbers():
    t = Training(pairs=100, batch=8, gpus=2, dim=3, width=5, parameters=7, picture_bytes=10, text_bytes=1)
    found = bytes_per_step(t)
    assert found["read"] == 4 * 11
    assert found["gathered"] == 2 * 4 * (2 * (3 + 2) * 4)  # pooled outputs stay where they are
    assert found["gradients"] == 2 * 7 * 4 / 2
    assert flops_per_step(t)["loss"] == 2 * 4 * 2 * 4 * 8 * 3
    twice = loads(Training(batch=65_536), Cluster())
    once = loads(Training(), Cluster())
    assert twice["random reads of samples"] == pytest.approx(once["random reads of samples"])
    assert twice["arithmetic of the loss"] == pytest.approx(2 * once["arithmetic of the loss"])
    slow = loads(Training(), Cluster(float32_flops=Cluster().float32_flops / 2))  # the loss has a rate of its own
    assert slow["arithmetic of the loss"] == pytest.approx(2 * once["arithmetic of the loss"])
    assert slow["random reads of samples"] == once["random reads of samples"]


def test_a_row_is_plain_data():
    row = Row("a", "b", "c", 1.0, 1.0, 1.0, "<= 1", True)
    assert Row(**row.to_dict()) == row


def test_of_several_arrays_the_largest_difference_counts(tmp_path):
    class Gradients(Two):
        quantities = (Quantity("difference", "gradient", "a", "b", "b", "<= 0.1", "relative"),)

    def sample(**arrays: np.ndarray) -> Sample:
        return Sample({"seconds": 1.0}, {name.replace("_", "."): values for name, values in arrays.items()})

    large, small = np.array([100.0, 1.0]), np.array([1.0])
    whole = sample(gradient_x=large, gradient_scale=small)
    for other, expected in (
        (sample(gradient_x=large, gradient_scale=small * 2), 0.5),
        (sample(gradient_x=large * 2, gradient_scale=small), 0.5),
        (sample(gradient_x=large), math.inf),
    ):
        [row] = rows(Gradients(Settings(), tmp_path), [{"a": whole, "b": other}], {}, Ceilings(1.0, 1.0, 1.0, 1.0))
        assert row.ratio_median == expected
