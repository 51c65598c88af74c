"""Replay: the shares of a batch, the losses of the past, the text, and what a stage with it keeps."""

import numpy as np
import pytest
import torch

from mmalign.batch import Batch, Embeddings
from mmalign.losses import InfoNCE, NextToken, blockwise
from mmalign.retention import DER, BalancedByStage, Replay, TextReplay


def test_the_first_stage_replays_nothing_and_later_ones_their_share(workshop) -> None:
    plans, model = workshop.plans(steps=16), workshop.model()
    replay = Replay(share=0.25, capacity=10, policy=BalancedByStage())
    replay.name = "m"
    plan = plans[0].clone()
    replay.prepare(plan, model)
    assert (plan.replay, plan.losses, plan.separate_replay) == ({}, {"ab": 1.0}, False)
    workshop.train(plans[0], model, {"m": replay})
    replayed: list[str] = []
    sizes: set[int] = set()

    def watch(batch: Batch, embeddings: Embeddings, terms: dict) -> None:
        assert batch.replayed is not None
        replayed.extend(key for key, flag in zip(batch.keys, batch.replayed.tolist(), strict=True) if flag)
        sizes.add(len(batch))

    workshop.train(plans[1], model, {"m": replay}, watch=watch)
    assert sizes == {8}  # equal compute: replayed rows stand in place of new ones
    assert len(replayed) == pytest.approx(0.25 * 16 * 8, abs=2)
    assert {key.partition("/")[0] for key in replayed} == {"m.stage-01-data-00-ab"}
    assert len(set(replayed)) == 10


def test_parts_share_by_their_samples_and_past_losses_stay_active(workshop) -> None:
    plans, model = workshop.plans(steps=3), workshop.model()
    replay = Replay(share=0.3, capacity=9, policy=BalancedByStage(), past_losses=0.5)
    for plan in plans:
        workshop.train(plan, model, {"m": replay})
    third = workshop.plans()[0]
    third.index, third.name, third.past = 3, "three", plans
    third.losses, third.pairs = {"bc": 2.0}, {"bc": ("b", "c")}
    plan = third.clone()
    replay.prepare(plan, model)
    shares = {name: share for name, (_, share) in plan.replay.items()}
    assert shares == pytest.approx({"m.stage-01-data-00-ab": 0.3 * 5 / 9, "m.stage-02-data-01-bc": 0.3 * 4 / 9})
    assert plan.losses == {"bc": 2.0, "ab": 0.5}
    assert plan.pairs == {"ab": ("a", "b"), "bc": ("b", "c")}
    assert plan.separate_replay
    assert third.losses == {"bc": 2.0}  # the configuration is untouched


def test_losses_of_a_stage_that_the_memory_did_not_see_stay_out(workshop) -> None:
    plans, model = workshop.plans(steps=3), workshop.model()
    replay = Replay(share=0.3, capacity=9)
    workshop.train(plans[0], model, {})
    workshop.train(plans[1], model, {"m": replay})
    third = workshop.plans()[0]
    third.index, third.name, third.past, third.losses, third.pairs = 3, "three", plans, {}, {}
    replay.prepare(third, model)
    assert set(third.losses) == set(plans[1].losses)


def test_own_negatives_contrast_replayed_rows_among_themselves() -> None:
    vectors = {m: torch.nn.functional.normalize(torch.randn(10, 4), dim=1) for m in "ab"}
    replayed = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 1, 0]).bool()
    present = {m: torch.ones(10, dtype=torch.bool) for m in "ab"}
    loss = InfoNCE("a", "b")

    def of(rows: torch.Tensor) -> torch.Tensor:
        part = {m: v[rows] for m, v in vectors.items()}
        return loss(Embeddings(part, {m: present[m][rows] for m in part}, torch.arange(10)[rows]))

    together = blockwise(loss, Embeddings(vectors, present, torch.arange(10), replayed=replayed), replayed.long())
    torch.testing.assert_close(together, 0.4 * of(replayed) + 0.6 * of(~replayed))


@pytest.mark.parametrize("negatives", ["own", "shared"])
def test_a_killed_stage_goes_on_to_the_same_weights_and_memory(workshop, negatives: str) -> None:
    def method() -> dict:
        text = workshop.data("text", 6, "b", 9)
        return {"m": Replay(0.25, 7, policy=BalancedByStage(), negatives=negatives, text=text, text_share=0.25)}

    plans, model, methods = workshop.plans(), workshop.model(speaking="b"), method()
    workshop.train(plans[0], model, methods)
    end = workshop.plain({"model": model.state_dict(), "retention": {n: m.state_dict() for n, m in methods.items()}})
    workshop.train(plans[1], model, methods)
    expected = workshop.plain({"model": model.state_dict(), "m": methods["m"].state_dict()})

    killed, methods = workshop.model(speaking="b"), method()
    killed.load_state_dict(end["model"])
    methods["m"].load_state_dict(end["retention"]["m"])
    middle = workshop.train(plans[1], killed, methods, stop=2)
    resumed, methods = workshop.model(speaking="b"), method()
    resumed.load_state_dict(end["model"])
    methods["m"].load_state_dict(end["retention"]["m"])
    workshop.train(plans[1], resumed, methods, resume=middle)
    actual = workshop.plain({"model": resumed.state_dict(), "m": methods["m"].state_dict()})
    _equal(actual, expected)
    assert methods["m"].memory.seen["two"] == expected["m"]["memory"]["seen"]["two"] > 0


def _equal(actual, expected) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            _equal(actual[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    else:
        assert actual == expected


def test_text_feeds_the_next_token_loss_from_the_first_stage_on(workshop) -> None:
    plans, model = workshop.plans(steps=12), workshop.model(speaking="b")
    text = workshop.data("text", 6, "b", 9)
    seen: list[float] = []

    def watch(batch: Batch, embeddings: Embeddings, terms: dict) -> None:
        assert batch.language is not None
        seen.append(float(batch.language.float().mean()))
        value = terms["m.next_token.b"]
        rows = embeddings.likelihoods["b"]
        assert value.item() == pytest.approx(0.5 * float((rows[:, 0].sum() / rows[:, 1].sum()).detach()), rel=1e-6)
        assert terms.keys() >= {"ab", "m.next_token.b"}

    workshop.train(plans[0], model, {"m": Replay(capacity=5, text=text, text_share=0.5, text_weight=0.5)}, watch=watch)
    assert np.mean(seen) == pytest.approx(0.5, abs=0.05)


def test_text_replay_lowers_the_loss_of_language_that_training_without_it_raises(workshop) -> None:
    text = workshop.data("text", 12, "b", 9)

    def language_after(methods: dict) -> float:
        plan, model = workshop.plans(steps=60)[0], workshop.model(speaking="b")
        held_out = workshop.data("held", 12, "b", 10)
        workshop.train(plan, model, methods)
        held = workshop.plans(batch_size=12)[0]
        held.data = {"held": held_out}
        held.data["held"].language = True
        with torch.no_grad():
            return float(NextToken("b")(model(workshop.stream(held, model)[0])))

    assert language_after({"text": TextReplay(text, share=0.5)}) < 0.5 * language_after({})


def test_only_with_text_is_the_first_stage_another_one(workshop) -> None:
    text = workshop.data("text", 6, "b", 9)
    for method in (Replay, lambda **settings: DER(Replay(**settings))):
        assert not method().acts_at_once
        assert method(text=text).acts_at_once


def test_shares_that_leave_nothing_for_new_samples_are_refused(workshop) -> None:
    text = workshop.data("text", 6, "b", 9)
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"share": 0.5, "text": text, "text_share": 0.5}):
        with pytest.raises(ValueError, match="share"):
            Replay(**wrong)
    with pytest.raises(ValueError, match="share"):
        TextReplay(text, share=1.0)
    with pytest.raises(ValueError, match="capacity"):
        Replay(capacity=0)
