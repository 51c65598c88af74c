"""DER, distillation and EWC: what their terms are, and that ranks add up to them."""

import copy
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from mmalign.batch import Batch, Embeddings
from mmalign.data.faults import Limits, QuarantineLog
from mmalign.data.index import build_index
from mmalign.data.shards import write_shards
from mmalign.data.stream import Stream
from mmalign.retention import DER, EMA, EWC, ZSCL, LoRA, LwF, Replay, Retention, TextReplay, TowerDistillation, WiSE
from mmalign.retention.base import load_parameters, preprocess_of
from mmalign.retention.similarity import distance, pair_divergence
from mmalign.training.gather import gather

METHODS = ["der", "zscl", "lwf", "tower", "captions", "ewc", "text"]


def make(kind: str, workshop: Any) -> dict[str, Retention]:
    text = workshop.data("text", 6, "b", 9)
    replay = Replay(0.25, 12)
    return {
        "der": {"der": DER(replay, embedding_weight=2.0, similarity_weight=3.0)},
        "zscl": {"replay": replay, "zscl": ZSCL(weight=2.0)},
        "lwf": {"lwf": LwF(weight=2.0)},
        "tower": {"tower": TowerDistillation(["b"], text, weight=2.0)},
        "captions": {"captions": TowerDistillation(["b"], text, weight=2.0, captions=True)},
        "ewc": {"ewc": EWC(weight=3.0, batches=3, batch_size=6)},
        "text": {"text": TextReplay(text, weight=2.0)},
    }[kind]


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def view(seed: int, rows: tuple[int, int] | None = None) -> Embeddings:
    present = {"a": torch.arange(12) % 3 != 0, "b": torch.arange(12) % 4 != 0}
    return Embeddings({"a": unit(12, seed), "b": unit(12, seed + 1)}, present, torch.arange(12), rows=rows)


def test_distance_and_divergence_equal_the_naive_ones() -> None:
    new, old = view(0), view(5)
    squares, divergences = [], []
    for m in "ab":
        squares += [
            float((new.vectors[m][i] - old.vectors[m][i]).square().sum()) for i in range(12) if old.present[m][i]
        ]
    for x, y in ("ab", "ba"):
        columns = [j for j in range(12) if old.present[y][j]]
        for i in range(12):
            if old.present[x][i]:
                p = torch.tensor([float(old.vectors[x][i] @ old.vectors[y][j]) / 0.2 for j in columns]).softmax(0)
                q = torch.tensor([float(new.vectors[x][i] @ new.vectors[y][j]) / 0.2 for j in columns]).softmax(0)
                divergences.append(float((p * (p / q).log()).sum()))
    assert float(distance(new, old, ["a", "b"])) == pytest.approx(sum(squares) / len(squares), rel=1e-6)
    value = pair_divergence(new, old, [("a", "b")], temperature=0.2)
    assert float(value) == pytest.approx(sum(divergences) / len(divergences), rel=1e-5)
    assert float(pair_divergence(old, old, [("a", "b")], 0.2)) == pytest.approx(0, abs=1e-12)
    parts = [pair_divergence(view(0, rows), old, [("a", "b")], 0.2) for rows in ((0, 5), (5, 12))]
    torch.testing.assert_close(parts[0] + parts[1], value)
    parts = [distance(view(0, rows), old, ["a", "b"]) for rows in ((0, 5), (5, 12))]
    torch.testing.assert_close(parts[0] + parts[1], distance(new, old, ["a", "b"]))


def test_nothing_to_compare_is_0_with_a_gradient_of_0() -> None:
    new = view(0)
    new.vectors["a"].requires_grad_()
    nothing = {m: torch.zeros(12, dtype=torch.bool) for m in "ab"}
    old = Embeddings(view(5).vectors, nothing, torch.arange(12))
    total = distance(new, old, ["a", "b"]) + pair_divergence(new, old, [("a", "b")], 0.1)
    total.backward()
    assert total.item() == 0
    assert torch.equal(new.vectors["a"].grad, torch.zeros(12, 5))


def test_der_compares_with_the_vectors_of_the_last_sighting(workshop) -> None:
    plans, model = workshop.plans(steps=5), workshop.model()
    method = DER(Replay(0.25, 24), embedding_weight=1.0)
    last: dict[str, torch.Tensor] = {}

    def remember(batch: Batch, embeddings: Embeddings, terms: dict) -> None:
        for row, key in enumerate(batch.keys):
            last[key.partition("/")[2]] = torch.stack([embeddings.vectors[m][row].detach() for m in "ab"])

    def check(batch: Batch, embeddings: Embeddings, terms: dict) -> None:
        squares = [
            (embeddings.vectors[m][row] - last[key.partition("/")[2]][i]).square().sum()
            for row, key in enumerate(batch.keys)
            if batch.replayed[row]
            for i, m in enumerate("ab")
        ]
        assert squares
        torch.testing.assert_close(terms["der.embedding"], torch.stack(squares).mean(), atol=2e-3, rtol=1e-2)
        terms_seen.append(terms["der.embedding"].item())

    terms_seen: list[float] = []
    workshop.train(plans[0], model, {"der": method}, watch=remember)
    assert method.bytes_stored() > 24 * 2 * 5 * 2  # two modalities, five channels, two bytes
    workshop.train(plans[1], model, {"der": method}, watch=check)
    assert len(terms_seen) == 5


def test_der_goes_on_after_a_kill_with_the_targets_of_the_stage_s_start(workshop) -> None:
    plans, model, method = workshop.plans(), workshop.model(), DER(Replay(0.25, 9), similarity_weight=1.0)
    workshop.train(plans[0], model, {"der": method})
    end = workshop.plain({"model": model.state_dict(), "der": method.state_dict()})
    workshop.train(plans[1], model, {"der": method})

    def start() -> tuple[Any, DER]:
        fresh = DER(Replay(0.25, 9), similarity_weight=1.0)
        fresh.load_state_dict(end["der"])
        fresh_model = workshop.model()
        fresh_model.load_state_dict(end["model"])
        return fresh_model, fresh

    killed, part = start()
    middle = workshop.train(plans[1], killed, {"der": part}, stop=3)
    resumed, again = start()
    workshop.train(plans[1], resumed, {"der": again}, resume=middle)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    for name, values in method.replay.memory.pool.beside.items():
        assert (values == again.replay.memory.pool.beside[name]).all()


@pytest.mark.parametrize("kind", METHODS)
def test_every_term_is_there_in_every_step_and_starts_at_0_for_a_teacher(workshop, kind: str) -> None:
    plans, model, methods = workshop.plans(), workshop.model(speaking="b"), make(kind, workshop)
    workshop.train(plans[0], model, methods)
    names: list[list[str]] = []
    values: list[dict[str, float]] = []

    def watch(batch: Batch, embeddings: Embeddings, terms: dict) -> None:
        names.append(sorted(terms))
        values.append({name: term.item() for name, term in terms.items()})

    workshop.train(plans[1], model, methods, watch=watch)
    assert all(found == names[0] for found in names)
    own = [name for name in names[0] if name.startswith(f"{kind}.")]
    assert own
    if kind in ("zscl", "lwf", "tower", "captions", "ewc"):
        assert values[0][own[0]] == pytest.approx(0, abs=1e-6)
        assert values[-1][own[0]] > 1e-6


def test_lwf_holds_the_known_modality_of_the_new_rows_closer_to_what_it_was(workshop) -> None:
    plans, model = workshop.plans(steps=20), workshop.model()
    workshop.train(plans[0], model, {})
    moved = {}
    for weight in (1e-9, 3.0):
        copied, lwf = copy.deepcopy(model), LwF(weight)
        batch = workshop.stream(plans[1], copied)[0]
        before = copied(batch).vectors["b"].detach()
        workshop.train(plans[1], copied, {"lwf": lwf})
        moved[weight] = float((copied(batch).vectors["b"].detach() - before).square().sum(1).mean())
    assert moved[3.0] < 0.5 * moved[1e-9]


def test_a_teacher_is_not_stored_and_not_trained(workshop) -> None:
    plans, model, method = workshop.plans(), workshop.model(), LwF()
    workshop.train(plans[0], model, {"lwf": method})
    method.begin(plans[1], model, {})
    batch = workshop.stream(plans[1], model)[0]
    method.penalty(model, batch, model(batch))["lwf.vectors"].backward()
    assert all(p.requires_grad for p in model.parameters())
    assert any(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in method._teacher.parameters())
    assert method.state_dict() == {}
    method.end(plans[1], model, {})
    assert method._teacher is None


def test_tower_distillation_on_captions_is_of_all_rows_that_hold_the_tower(workshop) -> None:
    plans, model = workshop.plans(), workshop.model()
    workshop.train(plans[0], model, {})
    batch, teacher = workshop.stream(plans[1], model)[0], copy.deepcopy(model)
    for held, expected in ((True, None), (False, 0.0)):
        method = TowerDistillation(["b"], weight=3.0, captions=held)
        method.begin(plans[1], teacher, {})
        moved = copy.deepcopy(model)
        load_parameters(moved, {name: p + 0.1 for name, p in moved.named_parameters()})
        now, before = moved(batch), teacher(batch)
        if expected is None:
            real = before.present["b"]
            cosine = F.cosine_similarity(now.pooled["b"][real], before.pooled["b"][real], dim=1)
            expected = 3 * (1 - cosine).mean().item()
            assert expected > 1e-3
        assert float(method.penalty(moved, batch, now)["tower_distillation.pooled"].detach()) == pytest.approx(expected)


@pytest.mark.parametrize("height", [1, 4, 5])
def test_bands_of_anchors_change_nothing(monkeypatch: pytest.MonkeyPatch, height: int) -> None:
    old, found = view(5), []
    for numbers in (1 << 24, height * 9):  # 8 or 9 rows of each
        monkeypatch.setattr("mmalign.retention.similarity._BAND_NUMBERS", numbers)
        new = view(0, (2, 11))
        inputs = [vectors.requires_grad_() for vectors in new.vectors.values()]
        value = pair_divergence(new, old, [("a", "b")], 0.2)
        found.append([value, *torch.autograd.grad(value, inputs)])
    torch.testing.assert_close(*found)


def test_similarities_of_bands_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    size, memory = 400, []
    everywhere = torch.ones(size, dtype=torch.bool)
    for numbers in (1 << 24, 40 * size):
        monkeypatch.setattr("mmalign.retention.similarity._BAND_NUMBERS", numbers)
        new, old = (
            Embeddings({m: unit(size, seed).requires_grad_() for m in "ab"}, {"a": everywhere, "b": everywhere},
                       torch.arange(size)) for seed in (0, 1)
        )  # fmt: skip
        kept: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved, kept=kept: kept.setdefault(saved.untyped_storage().data_ptr(), saved), lambda saved: saved
        ):
            pair_divergence(new, old, [("a", "b")], 0.2)
        memory.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    assert memory[0] > 8 * size**2
    assert memory[1] < memory[0] / 20


@pytest.mark.parametrize("kind", ["lwf", "captions"])
def test_the_teacher_sees_chunks_and_says_the_same(workshop, kind: str) -> None:
    plans, model = workshop.plans(), workshop.model()
    methods = make(kind, workshop)
    workshop.train(plans[0], model, methods)
    method = methods[kind]
    rows: list[int] = []
    found = []
    for chunk_size in (None, 3):
        plan = replace(plans[1], chunk_size=chunk_size).clone()
        for each in methods.values():
            each.prepare(plan, model)
            each.begin(plan, model, {})
        assert method._teacher is not None
        method._teacher.tower("b").register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        moved = copy.deepcopy(model)
        load_parameters(moved, {name: p + 0.1 for name, p in moved.named_parameters()})
        batch = workshop.stream(plan, moved)[0]
        found.append(method.penalty(moved, batch, moved(batch)))
    assert max(rows[1:]) <= 3
    assert sum(rows[1:]) == rows[0] > 0
    torch.testing.assert_close(*found)
    assert all(float(term.detach()) > 1e-6 for term in found[0].values())


def test_tower_distillation_names_a_tower_that_is_not_there(workshop) -> None:
    with pytest.raises(ValueError, match="'x'"):
        TowerDistillation(["x"]).prepare(workshop.plans()[0], workshop.model())


def test_ewc_s_fisher_is_the_scaled_mean_of_squared_gradients(workshop) -> None:
    plan, model, ewc = workshop.plans()[0], workshop.model(), EWC(batches=3, batch_size=6)
    losses = workshop.losses()
    fisher = ewc.stage_fisher(plan, model, losses)
    stream = Stream({"ab": (plan.data["ab"], 1.0)}, preprocess_of(model), 6, plan.seed, "one/fisher", 3)
    expected = torch.zeros_like(model.encoders["a"].first.weight)
    for step in range(3):
        model.zero_grad()
        losses["ab"](model(stream[step])).backward()
        expected += model.encoders["a"].first.weight.grad.square() * 6 / 3
    torch.testing.assert_close(fisher["encoders.a.first.weight"], expected)
    assert not fisher["encoders.c.first.weight"].any()


def test_ewc_reads_within_the_stage_s_limits_and_reports_what_it_cannot_use(workshop) -> None:
    plan, model, ewc = workshop.plans()[0], workshop.model(), EWC(batches=3, batch_size=6)
    samples = workshop.samples(6, "ab")
    samples[2].members["b.npy"] = b"no array"
    write_shards(workshop.folder / "damaged", "train", samples)
    build_index(workshop.folder / "damaged")
    plan.data["ab"] = replace(plan.data["ab"], shards=str(workshop.folder / "damaged"))
    log = QuarantineLog(workshop.folder / "quarantine.jsonl")
    with log.reported():
        ewc.stage_fisher(plan, model, workshop.losses())
    [line] = log.path.read_text().splitlines()
    assert '"dataset": "ab"' in line
    assert '"key": "s0002"' in line
    plan.limits = Limits(max_array_values=11)
    with pytest.raises(RuntimeError, match="limit is 11"):
        ewc.stage_fisher(plan, model, workshop.losses())


def test_ewc_is_online_and_its_penalty_the_quadratic_one(workshop) -> None:
    plans, model, ewc = workshop.plans(), workshop.model(), EWC(weight=5.0, decay=0.5, batches=2)
    losses = workshop.losses()
    ewc.after_end(plans[0], model, losses)
    first = {name: value.clone() for name, value in ewc.fisher.items()}
    load_parameters(model, {name: p + 0.1 for name, p in model.named_parameters()})
    batch = workshop.stream(plans[1], model)[0]
    embeddings = model(batch)
    [term] = ewc.penalty(model, batch, embeddings).values()
    assert term.item() == pytest.approx(2.5 * sum(float(f.sum()) for f in first.values()) * 0.01, rel=1e-4)
    second = ewc.stage_fisher(plans[1], model, losses)
    ewc.after_end(plans[1], model, losses)
    for name, value in ewc.fisher.items():
        torch.testing.assert_close(value, 0.5 * first[name] + second[name])
    again = EWC()
    again.load_state_dict(workshop.plain(ewc.state_dict()))
    assert again.bytes_stored() == ewc.bytes_stored() == 8 * sum(p.numel() for p in model.parameters())
    assert next(iter(again.penalty(model, batch, embeddings).values())).item() == 0


@pytest.mark.parametrize("other", ["wise", "ema", "lora"])
@pytest.mark.parametrize("ewc_first", [True, False])
def test_ewc_knows_the_weights_that_the_other_methods_leave(workshop, other: str, ewc_first: bool) -> None:
    plans, model, ewc = workshop.plans(), workshop.model(), EWC(batches=2, batch_size=4)
    others = {"wise": WiSE(0.5, ["*"]), "ema": EMA(0.9), "lora": LoRA(["encoder.*"], rank=2)}
    methods: dict[str, Retention] = {"ewc": ewc, other: others[other]}
    workshop.train(plans[0], model, methods if ewc_first else dict(reversed(methods.items())))
    left = dict(model.named_parameters())
    assert ewc.anchor.keys() == ewc.fisher.keys() == left.keys()
    fisher = ewc.stage_fisher(plans[0], model, workshop.losses())
    for name, value in left.items():
        assert torch.equal(ewc.anchor[name], value)
        assert torch.equal(ewc.fisher[name], fisher[name])


def test_ewc_holds_what_lora_adds_as_it_holds_the_merged_weights(workshop) -> None:
    plans, model, terms = workshop.plans(), workshop.model(), []
    ewc = EWC(weight=1000.0, batches=2, batch_size=4)
    workshop.train(plans[0], model, {"ewc": ewc})
    plans[1].trainable = {"projection.*": "none"}
    watched = copy.deepcopy(model), {"ewc": copy.deepcopy(ewc), "lora": LoRA(["encoder.*"], rank=2)}
    workshop.train(plans[1], *watched, watch=lambda batch, embeddings, seen: terms.append(seen["ewc.fisher"].item()))
    assert terms[0] == 0  # B starts at zero
    assert all(term > 1e-3 for term in terms[1:])

    lora, batch = LoRA(["encoder.*"], rank=2), workshop.stream(plans[1], model)[0]
    lora.begin(plans[1], model, {})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    embeddings = model(batch)
    model.zero_grad()
    [wrapped] = ewc.penalty(model, batch, embeddings).values()
    wrapped.backward()
    for name, parameter in model.encoders["b"].named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name)
    lora.end(plans[1], model, {})
    [merged] = ewc.penalty(model, batch, embeddings).values()
    assert merged.item() > 1e-2
    assert wrapped.item() == pytest.approx(merged.item(), rel=1e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_what_two_ranks_return_adds_up_to_what_one_returns(workshop, kind: str) -> None:
    plans, model, methods = workshop.plans(), workshop.model(speaking="b"), make(kind, workshop)
    workshop.train(plans[0], model, methods)
    totals = []
    for world in (1, 2):
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        arguments = (world, workshop.folder / f"store{world}", plans[1], model, methods, queue)
        processes = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(world)]
        for process in processes:
            process.start()
        results = [queue.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        totals.append([sum(parts) for parts in zip(*results, strict=True)])
    assert totals[0][0] > 1e-4
    assert totals[1] == pytest.approx(totals[0], rel=1e-4)


def _rank(rank: int, world: int, store: Path, plan: Any, model: Any, methods: dict[str, Retention], queue: Any) -> None:
    """(sum of the penalties, norm-like numbers of the gradient) of a step in which the model has moved a little."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    plan = plan.clone()
    model.double()  # a penalty can be a small difference of log-likelihoods, which float32 rounds too much
    for method in methods.values():
        method.prepare(plan, model)
        method.begin(plan, model, {})
    model.zero_grad()
    generator = torch.Generator().manual_seed(3)
    noise = {name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
    load_parameters(model, {name: p + noise[name] for name, p in model.named_parameters()})
    new = 1.0 - sum(share for _, share in plan.replay.values())
    sources = {name: (data, new) for name, data in plan.data.items()} | plan.replay
    batch = Stream(sources, preprocess_of(model), 8, 0, "two", 6, rank=rank, world=world)[1]
    embeddings = gather(model(batch))
    terms = [term for method in methods.values() for term in method.penalty(model, batch, embeddings).values()]
    total = torch.stack(terms).sum()
    total.backward()
    gradient = model.encoders["b"].first.weight.grad
    queue.put([total.item(), *([] if gradient is None else gradient.flatten().tolist())])
    distributed.barrier()
    distributed.destroy_process_group()
