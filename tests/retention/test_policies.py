"""Who stays: quotas, orders, and uniformity over many streams."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmalign.batch import Embeddings
from mmalign.retention import BalancedByData, BalancedByModalities, BalancedByStage, HardestK, Policy, Ring, Uniform
from mmalign.retention.policies import ENTRY
from mmalign.retention.pool import Pool
from mmalign.retention.store import sample_hash

POLICIES = [Uniform(), BalancedByStage(), BalancedByData(), BalancedByModalities(), Ring(), HardestK()]


def candidates(count: int, seed: int = 0, groups: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    entries = np.zeros(count, ENTRY)
    entries["hash"] = generator.choice(2**62, count, replace=False).astype(np.uint64) * 4 + 3
    for name in ("stage", "source", "modalities"):
        entries[name] = generator.integers(1, groups + 1, count)
    entries["step"] = generator.integers(0, 50, count)
    entries["score"] = generator.integers(0, 9, count)
    return entries


def kept(entries: np.ndarray, capacity: int, policy: Policy, pieces: int = 1) -> set[int]:
    pool = Pool(capacity, policy)
    for piece in np.array_split(entries, pieces):
        pool.add(piece)
        assert len(pool) <= capacity
        assert pool._size <= 2 * capacity + len(piece)  # candidates are bounded too
    assert len(pool.entries) == min(capacity, len(entries))
    return set(pool.entries["hash"].tolist())


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@given(seed=st.integers(0, 1000), count=st.integers(0, 60), capacity=st.integers(1, 40), pieces=st.integers(1, 9))
def test_piece_by_piece_is_all_at_once(policy: Policy, seed: int, count: int, capacity: int, pieces: int) -> None:
    entries = candidates(count, seed)
    shuffled = entries[np.random.default_rng(seed).permutation(count)]
    assert kept(entries, capacity, policy) == kept(shuffled, capacity, policy, pieces)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@given(seed=st.integers(0, 1000), capacity=st.integers(1, 8), steps=st.integers(1, 12))
def test_saving_changes_nothing_and_a_restored_pool_goes_on_the_same(
    policy: Policy, seed: int, capacity: int, steps: int
) -> None:
    """Samples come again with another step and score, and in another stage."""
    known, generator = candidates(20, seed), np.random.default_rng(seed)
    plain, saved, restored = (Pool(capacity, policy) for _ in range(3))
    for step in range(steps):
        entries = known[generator.integers(0, 20, 4)]
        entries["step"], entries["stage"], entries["score"] = step, 1 + step // 6, generator.integers(0, 9, 4)
        for pool in (plain, saved, restored):
            pool.add(entries, {"v": entries["score"][:, None]})
        state = saved.state_dict()
        fresh = Pool(capacity, policy)
        fresh.load_state_dict(restored.state_dict())
        restored = fresh
        for name, column in restored.state_dict()["entries"].items():
            assert torch.equal(column, state["entries"][name])
    for pool in (saved, restored):
        assert (pool.entries == plain.entries).all()
        assert (pool.beside["v"] == plain.beside["v"]).all()


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5), capacity=st.integers(1, 60))
def test_quotas_sum_to_the_capacity_and_are_as_equal_as_the_groups_allow(sizes: list[int], capacity: int) -> None:
    entries = candidates(sum(sizes))
    entries["stage"] = np.repeat(np.arange(len(sizes)), sizes)
    pool = Pool(capacity, BalancedByStage())
    pool.add(entries)
    counts = [int((pool.entries["stage"] == stage).sum()) for stage in range(len(sizes))]
    assert sum(counts) == min(capacity, sum(sizes))
    largest = max(counts)
    # a group has fewer than the largest quota (but for the remainder of one) only if it has no more to give
    assert all(count >= largest - 1 or count == size for count, size in zip(counts, sizes, strict=True))
    for stage, count in enumerate(counts):
        own = np.sort(entries["hash"][entries["stage"] == stage])
        assert set(pool.entries["hash"][pool.entries["stage"] == stage].tolist()) == set(own[:count].tolist())


def test_old_quotas_shrink_by_their_largest_hashes_when_a_stage_is_added() -> None:
    entries = candidates(60)
    entries["stage"] = np.repeat([1, 2, 3], 20)
    pool = Pool(12, BalancedByStage())
    quotas = []
    for stage in (1, 2, 3):
        before = set(pool.entries["hash"].tolist())
        pool.add(entries[entries["stage"] == stage])
        old = pool.entries[pool.entries["stage"] < stage]["hash"]
        assert set(old.tolist()) <= before
        quotas.append([int((pool.entries["stage"] == s).sum()) for s in (1, 2, 3)])
    assert quotas == [[12, 0, 0], [6, 6, 0], [4, 4, 4]]


def test_ring_keeps_the_last_and_hardest_the_hardest() -> None:
    entries = candidates(30)
    entries["step"] = np.arange(30)
    entries["score"] = (np.arange(30) * 7) % 30
    assert kept(entries, 5, Ring()) == set(entries["hash"][25:].tolist())
    assert kept(entries, 5, HardestK()) == set(entries["hash"][np.argsort(-entries["score"])[:5]].tolist())


def test_a_sample_seen_again_is_one_candidate_with_its_last_step_and_score() -> None:
    pool = Pool(10, HardestK())
    entries = candidates(4)
    pool.add(entries, {"v": np.ones((4, 2))})
    again = entries[:1].copy()
    again["step"], again["score"] = 99, 123.0
    pool.add(np.concatenate([again, again]), {"v": np.full((2, 2), 5.0)})
    place = pool.entries["hash"].tolist().index(again["hash"][0])
    assert len(pool) == 4
    assert (pool.entries["step"][place], pool.entries["score"][place]) == (99, 123.0)
    assert pool.beside["v"][place].tolist() == [5.0, 5.0]
    assert pool.beside["v"].sum() == 2 * (3 + 5)


def test_what_is_kept_beside_follows_its_sample() -> None:
    entries = candidates(200)
    pool = Pool(20, Uniform())
    for piece in np.array_split(entries, 13):
        pool.add(piece, {"v": (piece["hash"] % 1000).astype(float)[:, None] * np.ones((1, 3))})
    np.testing.assert_allclose(pool.beside["v"][:, 0], (pool.entries["hash"] % 1000).astype(float))


def test_uniform_over_200_streams() -> None:
    """Every sample is chosen equally often, wherever it stands and however often it comes: chi-squared at p = 0.001."""
    count, capacity, streams = 60, 15, 200
    chosen = np.zeros(count)
    for seed in range(streams):
        generator = np.random.default_rng(seed)
        # early samples come in more epochs than late ones, in batches of several sizes
        order = np.concatenate([np.arange(count), *[np.arange(0, count, 2)] * 3])
        hashes = np.array([sample_hash(seed, "data", f"s{i:03d}") for i in range(count)], np.uint64)
        pool = Pool(capacity, Uniform())
        for piece in np.array_split(order, generator.integers(1, 30)):
            entries = np.zeros(len(piece), ENTRY)
            entries["hash"] = hashes[piece]
            pool.add(entries)
        chosen += np.isin(hashes, pool.entries["hash"])
    expected = streams * capacity / count
    # a count has the variance n p (1 - p), and the counts of a stream sum to the capacity: one degree of freedom less
    statistic = ((chosen - expected) ** 2).sum() / (expected * (1 - capacity / count)) * (count - 1) / count
    degrees = count - 1
    # Wilson and Hilferty's approximation of the 0.999 quantile, whose normal quantile is 3.0902
    critical = degrees * (1 - 2 / (9 * degrees) + 3.0902 * np.sqrt(2 / (9 * degrees))) ** 3
    assert chosen.sum() == streams * capacity
    assert statistic < critical


def test_the_chi_squared_statistic_finds_a_choice_that_depends_on_the_position() -> None:
    count, capacity, streams = 60, 15, 200
    # a reservoir whose count starts anew halfway prefers late samples: what a resume that resets it would do
    chosen = np.zeros(count)
    for seed in range(streams):
        generator = np.random.default_rng(seed)
        reservoir: list[int] = []
        for half in np.split(np.arange(count), 2):
            for seen, sample in enumerate(half.tolist(), 1):
                if len(reservoir) < capacity:
                    reservoir.append(sample)
                elif (place := generator.integers(max(seen, capacity))) < capacity:
                    reservoir[place] = sample
        chosen[reservoir] += 1
    expected = streams * capacity / count
    statistic = ((chosen - expected) ** 2).sum() / (expected * (1 - capacity / count)) * (count - 1) / count
    assert statistic > 120


def test_scores_are_the_per_sample_contrastive_loss() -> None:
    vectors = {m: torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for m in "ab"}
    present = {"a": torch.ones(6, dtype=torch.bool), "b": torch.tensor([1, 1, 1, 1, 0, 1]).bool()}
    scores = HardestK(temperature=0.5).score(Embeddings(vectors, present, torch.arange(6)))
    rows = [0, 1, 2, 3, 5]
    cosines = (vectors["a"] @ vectors["b"].T).numpy()
    for row in range(6):
        if row == 4:
            assert scores[row] == 0
            continue
        forward = -2 * cosines[row, row] + np.log(sum(np.exp(2 * cosines[row, j]) for j in rows))
        backward = -2 * cosines[row, row] + np.log(sum(np.exp(2 * cosines[j, row]) for j in rows))
        assert float(scores[row]) == pytest.approx((forward + backward) / 2, abs=1e-6)


def test_the_hash_is_keyed_and_tells_data_sets_apart() -> None:
    hashes = {sample_hash(seed, data, key) for seed in (0, 1) for data in ("x", "y") for key in ("1", "2")}
    assert len(hashes) == 8
    assert sample_hash(3, "x", "k") == sample_hash(3, "x", "k")
