"""Methods together: every pair runs, state survives a file, and the same run twice is the same."""

import copy
from itertools import combinations

import pytest
import torch

from mmalign.retention import (
    DER,
    EMA,
    EWC,
    ZSCL,
    BalancedByStage,
    Frozen,
    Joint,
    LoRA,
    LwF,
    Replay,
    Retention,
    TextReplay,
    TowerDistillation,
    WiSE,
)

NAMES = ["wise", "ewc", "zscl", "lwf", "tower", "text", "replay", "der", "joint", "frozen", "lora", "ema"]


def make(names: tuple[str, ...], workshop) -> dict[str, Retention]:
    text = workshop.data("text", 6, "b", 9)
    every = {
        "wise": lambda: WiSE(0.5),
        "ewc": lambda: EWC(batches=1, batch_size=4),
        "zscl": lambda: ZSCL(workshop.data("reference", 6, "ab", 8), share=0.2),
        "lwf": lambda: LwF(),
        "tower": lambda: TowerDistillation(["b"], text, share=0.1),
        "text": lambda: TextReplay(text, share=0.2),
        "replay": lambda: Replay(0.2, 5, policy=BalancedByStage()),
        "der": lambda: DER(Replay(0.2, 5)),
        "joint": lambda: Joint(),
        "frozen": lambda: Frozen(["encoder.a"]),
        "lora": lambda: LoRA(["encoder.b"], rank=2),
        "ema": lambda: EMA(0.5),
    }
    return {name: every[name]() for name in names}


def run(names: tuple[str, ...], workshop, folder: str) -> tuple[dict, dict]:
    plans, model, methods = workshop.plans(steps=2), workshop.model(speaking="b"), make(names, workshop)
    for plan in plans:
        plan.directory = workshop.folder / folder
        workshop.train(plan, model, methods)
    return model.state_dict(), {name: method.state_dict() for name, method in methods.items()}


def _equal(actual, expected) -> bool:
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(_equal(actual[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(actual) == len(expected) and all(map(_equal, actual, expected))
    return torch.equal(actual, expected) if isinstance(expected, torch.Tensor) else actual == expected


PAIRS = [pair for pair in combinations(NAMES, 2) if {"wise", "replay", "joint", "lora"} & set(pair)]
"""The methods that change weights, data or layers with every other one; the rest only add a term."""


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_any_two_methods_compose(workshop, names: tuple[str, str]) -> None:
    weights, _ = run(names, workshop, "run")
    plain, _ = run((), workshop, "plain")
    assert weights.keys() == plain.keys()
    assert all(bool(value.isfinite().all()) for value in weights.values())
    # nothing of a method stays behind in the model
    assert {name: value.shape for name, value in weights.items()} == {n: value.shape for n, value in plain.items()}


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_file_and_runs_repeat(workshop, name: str) -> None:
    weights, state = run((name,), workshop, "one")
    again, same = run((name,), workshop, "two")
    assert _equal(again, weights)
    assert _equal(same, state)
    [fresh] = make((name,), workshop).values()
    fresh.load_state_dict(workshop.plain(copy.deepcopy(state[name])))
    assert _equal(fresh.state_dict(), state[name])
    fresh.load_state_dict({})  # a checkpoint of a run without the method
    assert fresh.bytes_stored() >= 0


def test_two_memories_beside_each_other_keep_to_their_own_folders(workshop) -> None:
    methods = {"small": Replay(0.2, 3), "large": Replay(0.2, 9), "der": DER(Replay(0.2, 4))}
    plans, model = workshop.plans(steps=3), workshop.model()
    for plan in plans:
        workshop.train(plan, model, methods)
    folders = {path.name for path in (plans[0].directory / "retention").iterdir()}
    assert folders == set(methods)
    small, large = (set(methods[n].memory.pool.entries["hash"].tolist()) for n in ("small", "large"))
    assert small < large  # one order decides for both
