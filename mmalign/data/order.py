"""Which sample stands where: pure functions of seed, stage, data set and position, in constant memory."""

import hashlib
import json
from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt64

_ROUNDS = 12  # must be even; fewer leave a bias that a test sees at five samples
_CYCLE_POSITIONS = 8192


def keyed_hash(*parts: str | int, bits: int = 64) -> int:
    """A number in [0, 2**bits) that depends on every part, the same everywhere and always."""
    text = json.dumps(parts, ensure_ascii=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> (64 - bits)


class KeyedGenerator:
    """Random numbers that depend on a key and on nothing drawn before.

    One generator whose state is set anew for each key, since making a generator costs more than reading many a sample.
    """

    def __init__(self) -> None:
        self._bits = np.random.PCG64(0)
        self._generator = np.random.Generator(self._bits)

    def at(self, *parts: str | int) -> np.random.Generator:
        """The generator of this key; valid until the next call."""
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=32).digest()
        state = int.from_bytes(digest[:16], "little")
        increment = int.from_bytes(digest[16:], "little") | 1  # odd, as PCG64 demands
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": increment},
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._generator


@lru_cache(maxsize=64)
def _round_keys(*key: str | int) -> tuple[int, ...]:
    digest = hashlib.shake_128(json.dumps(key).encode()).digest(8 * _ROUNDS)
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, 8 * _ROUNDS, 8))


def permute(positions: Int[np.ndarray, " positions"], count: int, *key: str | int) -> Int[np.ndarray, " positions"]:
    """Entries of a keyed pseudo-random permutation of 0 … count-1.

    A Feistel network over the smallest rectangle of numbers that holds `count` of them (Black and Rogaway, "Ciphers
    with Arbitrary Finite Domains", 2002); what falls outside `count` is sent through again until it falls inside.

    Args:
        positions: each in [0, count).
        key: two different keys give unrelated permutations.
    """
    left_size = max(1, int(np.ceil(np.sqrt(count))))
    right_size = -(-count // left_size)
    values = np.asarray(positions, dtype=np.uint64)
    result = _feistel(values, left_size, right_size, _round_keys(*key))
    outside = np.flatnonzero(result >= count)
    while outside.size:
        result[outside] = _feistel(result[outside], left_size, right_size, _round_keys(*key))
        outside = outside[result[outside] >= count]
    return result.astype(np.int64)


def _feistel(
    values: UInt64[np.ndarray, " positions"], left_size: int, right_size: int, keys: tuple[int, ...]
) -> UInt64[np.ndarray, " positions"]:
    sizes = np.array([left_size, right_size], dtype=np.uint64)
    left, right = values % sizes[0], values // sizes[0]
    for i, key in enumerate(keys):
        left, right = right, (left + _mix(right ^ np.uint64(key))) % sizes[i % 2]
    return left + sizes[0] * right  # after an even number of rounds each half is back in its own range


def _mix(values: UInt64[np.ndarray, " positions"]) -> UInt64[np.ndarray, " positions"]:
    """The finaliser of SplitMix64, cut to 32 bits so that the sum with a half cannot overflow."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (values ^ (values >> np.uint64(31))) >> np.uint64(32)


class Mixture:
    """Draws from several data sets by weight, deterministically.

    Time runs in cycles of `positions`; in each, a data set gets its exact share of them (the largest remainders are
    rounded up, and every positive weight gets at least one), spread evenly, so that every batch holds nearly its share.

    Args:
        weights: by data set, relative to each other.
        key: seeds the places within a cycle.
        positions: length of a cycle.

    Raises:
        ValueError: no weight is positive.
    """

    def __init__(self, weights: dict[str, float], *key: str | int, positions: int = _CYCLE_POSITIONS) -> None:
        total = sum(weights.values())
        if not total > 0:
            raise ValueError(f"no data set has a positive weight: {weights}")
        self.names = list(weights)
        shares = np.array([weight / total for weight in weights.values()])
        exact = shares * positions
        drawn = np.array([weight > 0 for weight in weights.values()])
        self.quotas = np.maximum(np.floor(exact).astype(np.int64), drawn)
        for i in np.argsort(self.quotas - exact, kind="stable")[: max(0, positions - int(self.quotas.sum()))]:
            self.quotas[i] += 1
        self.positions = int(self.quotas.sum())
        # The i-th of q draws of a data set takes place at about (i + phase) / q of the cycle.
        phases = [keyed_hash(*key, name, "phase", bits=53) / 2**53 for name in self.names]
        times = [(np.arange(quota) + phase) / max(quota, 1) for quota, phase in zip(self.quotas, phases, strict=True)]
        owners = np.repeat(np.arange(len(self.names)), self.quotas)
        self._owner = owners[np.argsort(np.concatenate(times), kind="stable")]
        self._rank = np.zeros(self.positions, dtype=np.int64)
        for i, quota in enumerate(self.quotas):
            self._rank[self._owner == i] = np.arange(quota)

    def draw(
        self, positions: Int[np.ndarray, " positions"]
    ) -> tuple[Int[np.ndarray, " positions"], Int[np.ndarray, " positions"]]:
        """(number of the data set in `names`, how many were drawn from it before) at each position of the stage."""
        cycle, slot = np.divmod(positions, self.positions)
        owner = self._owner[slot]
        return owner, cycle * self.quotas[owner] + self._rank[slot]
