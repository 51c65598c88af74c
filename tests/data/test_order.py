"""Orders are permutations, uniform enough, and mixtures keep their quotas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.data.order import KeyedGenerator, Mixture, keyed_hash, permute


@given(st.integers(1, 3000), st.integers())
def test_a_permutation(count: int, seed: int) -> None:
    order = permute(np.arange(count), count, seed, "stage", "data", 0)
    assert sorted(order.tolist()) == list(range(count))
    # Any part of it can be computed alone.
    part = np.arange(count)[count // 3 : count // 2]
    np.testing.assert_array_equal(permute(part, count, seed, "stage", "data", 0), order[part])


@pytest.mark.parametrize("count", [2**31 - 1, 10**9])
def test_a_large_permutation_has_no_repetition(count: int) -> None:
    drawn = permute(np.arange(200_000) * 4999, count, 3)
    assert len(np.unique(drawn)) == 200_000
    assert drawn.min() >= 0
    assert drawn.max() < count
    # … and looks uniform: chi-squared over 100 equal bins, 99 degrees of freedom, far tails.
    observed = np.bincount(drawn * 100 // count, minlength=100)
    assert 40 < ((observed - 2000) ** 2 / 2000).sum() < 180


@pytest.mark.parametrize("count", [2, 3, 5, 8, 50])
def test_every_place_is_equally_likely(count: int) -> None:
    """Chi-squared of (place, sample) over many keys; (count - 1)² degrees of freedom."""
    trials = 1500
    table = np.zeros((count, count))
    for seed in range(trials):
        table[np.arange(count), permute(np.arange(count), count, seed, "x")] += 1
    expected, freedom = trials / count, (count - 1) ** 2
    assert ((table - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_part() -> None:
    order = permute(np.arange(10_000), 10_000, 0).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    other = permute(np.arange(10_000), 10_000, 1).astype(float)
    assert abs(np.corrcoef(order, other)[0, 1]) < 0.05


def test_hashes_tell_their_parts_apart() -> None:
    hashes = [keyed_hash(*p) for p in [("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("b", "a"), ("a\0b",)]]
    assert len(set(hashes)) == len(hashes)
    assert keyed_hash("a", 1) == 4402816434243395361
    assert all(keyed_hash("x", i, bits=63) < 2**63 for i in range(100))


def test_a_keyed_generator_forgets_what_was_drawn() -> None:
    generator = KeyedGenerator()
    first = generator.at(0, "a").random(5).tolist()
    generator.at(0, "b").integers(7, dtype=np.uint32)  # leaves half of a 64-bit number behind
    assert generator.at(0, "a").random(5).tolist() == first
    # Uniform over keys: chi-squared over 20 bins, 19 degrees of freedom, far tail.
    draws = [generator.at(0, f"key{i}").random() for i in range(10_000)]
    observed = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((observed - 500) ** 2 / 500).sum() < 50


@given(st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda w: sum(w) > 0.01), st.integers(0, 99))
def test_a_mixture_keeps_its_quotas(weights: list[float], seed: int) -> None:
    mixture = Mixture({f"d{i}": weight for i, weight in enumerate(weights)}, seed)
    owners, ranks = mixture.draw(np.arange(3 * mixture.positions))
    for i, weight in enumerate(weights):
        mine = owners == i
        # Draws from a data set are numbered without gap, over cycles too.
        np.testing.assert_array_equal(ranks[mine], np.arange(mine.sum()))
        assert abs(mine.sum() / len(owners) - weight / sum(weights)) <= len(weights) / 8192
        assert mine.any() == (weight > 0)
        # Every stretch holds nearly its share.
        window = np.convolve(mine, np.ones(100), mode="valid")
        assert window.max() - window.min() <= len(weights)


def test_exact_shares_are_exact() -> None:
    mixture = Mixture({"new": 0.75, "replay": 0.25}, 0, "stage")
    owners, _ = mixture.draw(np.arange(64 * 100))
    assert set(owners.reshape(100, 64).sum(1).tolist()) == {16}


def test_weights_must_say_something() -> None:
    with pytest.raises(ValueError, match="no data set has a positive weight"):
        Mixture({"a": 0.0})
