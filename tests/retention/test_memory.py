"""The memory as a whole: what is observed, chosen, copied, replayed and restored."""

import io
import multiprocessing
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from mmalign.batch import Batch, Embeddings
from mmalign.data.config import ShardData
from mmalign.data.faults import Limits
from mmalign.data.index import ShardSet, build_index
from mmalign.data.sample import RawSample
from mmalign.data.scan import key_hash
from mmalign.data.shards import write_shards
from mmalign.data.stream import Stream
from mmalign.model import Aligner
from mmalign.retention import (
    DER,
    BalancedByData,
    BalancedByModalities,
    BalancedByStage,
    HardestK,
    Policy,
    Replay,
    Ring,
    StagePlan,
    Uniform,
)
from mmalign.retention.base import preprocess_of
from mmalign.retention.generation import directory_bytes
from mmalign.retention.memory import Memory
from mmalign.retention.store import SAMPLES_PER_SHARD, Budget, sample_hash, tar_bytes


def watch_stage(
    memory: Memory, plan: StagePlan, model: Aligner, steps: range | None = None, rank: int = 0, world: int = 1
):
    """Observe a stage's stream without training."""
    memory.begin(plan, model, plan.directory / "retention" / "m")
    sources = {name: (data, 1.0) for name, data in plan.data.items()} | plan.replay
    stream = Stream(
        sources, preprocess_of(model), plan.batch_size, plan.seed, plan.name, plan.steps, rank=rank, world=world
    )
    with torch.no_grad():
        for step in steps or range(plan.steps):
            observe(memory, plan, model, stream[step], rank, world)


def observe(memory: Memory, plan: StagePlan, model: Aligner, batch: Batch, rank: int = 0, world: int = 1) -> None:
    embeddings = model(batch)
    if world > 1:
        embeddings = gathered(embeddings, rank, world)
    memory.observe(plan, batch, embeddings)


def gathered(embeddings: Any, rank: int, world: int) -> Any:
    from dataclasses import replace

    everyone: list[Any] = [None] * world
    distributed.all_gather_object(everyone, embeddings)
    size = len(embeddings.group)
    join = {
        field: {name: torch.cat([getattr(e, field)[name] for e in everyone]) for name in getattr(embeddings, field)}
        for field in ("vectors", "present")
    }
    group = torch.cat([e.group for e in everyone])
    return replace(embeddings, **join, group=group, pooled={}, rows=(rank * size, (rank + 1) * size), replayed=None)


def keys(memory: Memory, plan: StagePlan) -> set[str]:
    """Names of the samples on disk, whole memory."""
    found = set()
    for data, count in memory.data(plan.directory / "retention" / "m").values():
        shards = ShardSet.open(data.shards, data.split)
        assert len(shards) == count
        found |= {f"{Path(data.shards).name}/{shards.read(i).key}" for i in range(count)}
    return found


def test_the_smallest_hashes_of_what_was_seen_are_on_disk(workshop) -> None:
    plan, model = workshop.plans(steps=4)[0], workshop.model()  # 4 batches of 8 out of 24: one epoch and a third
    memory = Memory(10, 2**30)
    watch_stage(memory, plan, model)
    memory.commit(plan, model)
    [source] = memory.sources
    assert source.sha256 == ShardSet.open(plan.data["ab"].shards, "train").sha256
    hashes = sorted((sample_hash(plan.seed, source.identity, f"s{i:04d}"), f"s{i:04d}") for i in range(24))
    assert keys(memory, plan) == {f"stage-01-data-00-ab/{key}" for _, key in hashes[:10]}
    assert memory.seen == {"one": 32}


def test_more_epochs_and_another_order_change_nothing(workshop) -> None:
    found = []
    for steps, name in ((3, "one"), (9, "one"), (3, "other")):
        plan, model = workshop.plans(steps=steps)[0], workshop.model()
        plan.name = name
        memory = Memory(10, 2**30)
        watch_stage(memory, plan, model)
        found.append(set(memory.pool.entries["hash"].tolist()))
    assert found[0] == found[1] == found[2]


def test_samples_are_copied_as_they_stood_with_the_members_in_use(workshop) -> None:
    plan, model = workshop.plans(steps=3)[0], workshop.model()
    memory = Memory(5, 2**30)
    watch_stage(memory, plan, model)
    memory.commit(plan, model)
    [(data, count)] = memory.data(plan.directory / "retention" / "m").values()
    assert (count, data.replayed, data.modalities.keys()) == (5, True, plan.data["ab"].modalities.keys())
    originals = {sample.key: sample for sample in workshop.samples(24, "ab", 1)}
    stored = ShardSet.open(data.shards, data.split)
    for i in range(count):
        sample = stored.read(i)
        expected = originals[sample.key].members
        assert sample.members == {name: expected[name] for name in ("a.npy", "b.npy", "json")}


def test_samples_are_copied_within_the_limits_of_the_stage(workshop) -> None:
    plan, model, memory = workshop.plans(steps=3)[0], workshop.model(), Memory(5, 2**30)
    watch_stage(memory, plan, model)
    plan.limits = Limits(max_sample_bytes=100)
    with pytest.raises(ValueError, match=r"cannot be read: .* the limit is 100"):
        memory.commit(plan, model)


def test_two_stages_share_the_places_and_the_old_part_is_rewritten(workshop) -> None:
    plans, model = workshop.plans(steps=3), workshop.model()
    memory = Memory(9, 2**30, BalancedByStage())
    for plan, counts in zip(plans, ([9], [5, 4]), strict=True):
        watch_stage(memory, plan, model)
        memory.commit(plan, model)
        assert [count for _, count in memory.data(plan.directory / "retention" / "m").values()] == counts
        assert len(keys(memory, plan)) == 9
    folder = plans[0].directory / "retention" / "m"
    assert sorted(path.name for path in folder.iterdir()) == ["after-01", "after-02"]  # a killed run may need the first
    third = workshop.plans(steps=3)[1]
    third.index, third.name = 3, "three"
    memory.begin(third, model, folder)
    assert [path.name for path in folder.iterdir()] == ["after-02"]


def test_the_same_shards_read_as_other_modalities_are_other_samples(workshop) -> None:
    """Stage 2 aligns other parts of the samples of stage 1: both alignments need their memory."""
    plans, model = workshop.plans(steps=3), workshop.model("abc")
    both = workshop.data("abc", 24, "abc", 3)
    for plan, modalities in zip(plans, ("ab", "bc"), strict=True):
        plan.data = {"all": ShardData(both.shards, modalities={m: f"{m}.npy" for m in modalities})}
    memory = Memory(12, 2**30, BalancedByStage())
    for plan in plans:
        watch_stage(memory, plan, model)
        memory.commit(plan, model)
    parts = memory.data(plans[0].directory / "retention" / "m")
    assert [(sorted(data.modalities), count) for data, count in parts.values()] == [(["a", "b"], 6), (["b", "c"], 6)]
    for data, _ in parts.values():
        members = ShardSet.open(data.shards, data.split).read(0).members
        assert set(members) == {*(f"{name}.npy" for name in data.modalities), "json"}
    # the same part read twice is kept once
    watch_stage(memory, plans[0], model)
    assert len(memory.pool) == 12
    assert len({(stage, source) for stage, source in memory.pool.entries[["stage", "source"]].tolist()}) == 2


def test_names_of_data_sets_and_methods_may_hold_slashes(workshop) -> None:
    plans, model, seen = workshop.plans(steps=4), workshop.model(), []
    plans[0].data = {"old/en": plans[0].data["ab"], "old/fr": workshop.data("fr", 8, "ab", 7)}
    methods = {"kinds/der": DER(Replay(0.5, 9))}
    for plan in plans:
        workshop.train(plan, model, methods, watch=lambda batch, _, terms: seen.append((batch.replayed, terms)))
    assert {source.name for source in methods["kinds/der"].replay.memory.sources} == {"old/en", "old/fr", "bc"}
    assert all(replayed.any() and terms["kinds/der.embedding"].item() > 0 for replayed, terms in seen[4:])
    plans[0].data["old"] = plans[0].data["old/fr"]
    with pytest.raises(ValueError, match=r"'old' or of 'old/"):
        Replay().begin(plans[0], model, {})


def test_replayed_and_language_rows_are_no_candidates(workshop) -> None:
    plan, model = workshop.plans(steps=6)[0], workshop.model()
    plan.replay = {
        "old": (workshop.data("old", 8, "ab", 5, replayed=True), 0.5),
        "text": (workshop.data("text", 8, "b", 6, language=True), 0.5),
    }
    memory = Memory(100, 2**30)
    watch_stage(memory, plan, model)
    assert {source.name for source in memory.sources} == {"ab"}
    assert memory.seen["one"] == pytest.approx(24, abs=2)
    assert len(memory.pool) <= 24


def test_a_resumed_memory_is_the_one_that_was_never_interrupted(workshop) -> None:
    """The state goes through a file; also the count of samples seen goes on where it stood."""
    plan, model = workshop.plans(steps=6)[0], workshop.model()
    whole = Memory(10, 2**30, Ring())
    watch_stage(whole, plan, model)
    first = Memory(10, 2**30, Ring())
    watch_stage(first, plan, model, range(0, 2))
    resumed = Memory(10, 2**30, Ring())
    stream = Stream({"ab": (plan.data["ab"], 1.0)}, preprocess_of(model), 8, 0, "one", 6)
    resumed.begin(plan, model, plan.directory / "retention" / "m")
    resumed.load_state_dict(workshop.plain(first.state_dict()))
    assert (resumed.seen["one"], resumed.steps) == (16, 2)
    for step in range(2, 6):
        observe(resumed, plan, model, stream[step])
    assert resumed.seen["one"] == whole.seen["one"] == 48
    assert_same(resumed.state_dict(), whole.state_dict())
    resumed.commit(plan, model)
    assert len(keys(resumed, plan)) == 10


@pytest.mark.parametrize(
    "policy",
    [Uniform, BalancedByStage, BalancedByData, BalancedByModalities, Ring, HardestK],
    ids=lambda policy: policy.__name__,
)
def test_checkpoints_change_neither_the_memory_nor_the_weights(workshop, policy: type[Policy]) -> None:
    """With samples that come again, also in the next stage."""

    def run(name: str, every_step: bool) -> tuple[Any, Any]:
        plans, model = workshop.plans(steps=6), workshop.model()
        replay = Replay(0.25, capacity=14, policy=policy())
        again = plans[0].clone()
        again.index, again.name, again.past = 3, "three", plans
        for plan in (*plans, again):
            plan.directory = workshop.folder / name
            watch = (lambda *_: replay.state_dict()) if every_step else None
            workshop.train(plan, model, {"m": replay}, watch=watch)
        return model.state_dict(), replay.state_dict()

    assert_same(run("often", True), run("never", False))


def assert_same(one: Any, two: Any) -> None:
    if isinstance(one, tuple):
        for parts in zip(one, two, strict=True):
            assert_same(*parts)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


def test_the_state_holds_numbers_for_each_sample_and_no_content(workshop) -> None:
    plan, model = workshop.plans(steps=3)[0], workshop.model()
    memory = Memory(20, 2**30)
    watch_stage(memory, plan, model)
    memory.commit(plan, model)
    entries = memory.state_dict()["pool"]["entries"]
    assert {name: tuple(column.shape) for name, column in entries.items()} == dict.fromkeys(entries, (20,))
    assert sum(column.nbytes for column in entries.values()) == 20 * 56
    assert memory.state_dict()["pool"]["beside"] == {}


@pytest.mark.parametrize("budget_kib", [12, 25, 40, 60])
def test_the_byte_budget_holds_for_all_that_is_on_disk_and_cuts_the_policy_s_last(workshop, budget_kib: int) -> None:
    plans, model = workshop.plans(steps=3), workshop.model()
    memory = Memory(40, budget_kib * 1024, BalancedByStage())
    for plan in plans:
        watch_stage(memory, plan, model)
        order = memory.pool.entries["hash"][memory.pool.order()].tolist()
        memory.commit(plan, model)
        folder = plan.directory / "retention" / "m" / f"after-{plan.index:02d}"
        assert directory_bytes(folder) <= budget_kib * 1024
        kept = set(memory.pool.entries["hash"].tolist())
        assert kept == set(order[: len(kept)])
        assert len(keys(memory, plan)) == len(kept)
        assert memory.bytes_stored() == directory_bytes(folder) + 44 * len(kept)
    assert len(memory.pool) < 40


def test_the_budget_counts_what_files_take(tmp_path: Path) -> None:
    samples = [
        RawSample(f"k{i}", {"x.npy": bytes(37 * (i % 40)), "json": b"{}"}) for i in range(SAMPLES_PER_SHARD + 20)
    ]
    budget = Budget(2**40)
    for sample in samples:
        assert budget.take("part", tar_bytes(sample))
    write_shards(tmp_path, "memory", samples, SAMPLES_PER_SHARD)
    build_index(tmp_path)
    actual = directory_bytes(tmp_path)
    assert actual <= budget.taken <= actual + 4096


def foreign_shards(folder: Path, names: dict[str, bytes]) -> None:
    """A tar of eight samples "deep/er/k é0", …, each with these members."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(8):
            for name, data in names.items():
                header = tarfile.TarInfo(f"deep/er/k é{number}.{name}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    build_index(folder)


def test_keys_that_our_tars_refuse_are_replaced(workshop) -> None:
    array, folder = workshop.samples(1, "ab")[0].members, workshop.folder / "foreign"
    foreign_shards(folder, {name: array[name] for name in ("a.npy", "b.npy")})
    plan, model = workshop.plans(steps=1)[0], workshop.model()
    plan.data = {"f": ShardData(str(folder), modalities={"a": "a.npy", "b": "b.npy"})}
    memory = Memory(4, 2**30)
    watch_stage(memory, plan, model)
    memory.commit(plan, model)
    places = memory.places()
    assert len(places) == 4
    for data, count in memory.data(plan.directory / "retention" / "m").values():
        shards = ShardSet.open(data.shards, data.split)
        assert {(Path(data.shards).name, key_hash(shards.read(i).key)) for i in range(count)} == set(places)
    # and once more, from the memory into the next generation
    second = workshop.plans(steps=1)[1]
    watch_stage(memory, second, model)
    memory.commit(second, model)
    assert len(memory.places()) == 4


def test_members_that_our_tars_refuse_are_renamed_and_found_by_their_modalities(workshop) -> None:
    folder, plans, model = workshop.folder / "foreign", workshop.plans(steps=2), workshop.model()
    a, both, b = (f"{i}".encode() * 9 for i in range(3))  # never decoded here
    foreign_shards(folder, {"a.日本.NPY": a, "a.fr.npy": a, f"ab ({'long' * 30}).npy": both, "b..npy": b, "c d": b""})
    modalities = {"a": "a.*.npy|ab*.npy", "b": "b..npy|ab *.npy"}
    plan = plans[0]
    plan.data = {"f": ShardData(str(folder), modalities=modalities)}
    memory = Memory(4, 2**30)
    memory.begin(plan, model, plan.directory / "retention" / "m")
    keys = [f"f/deep/er/k é{number}" for number in range(8)]
    batch = Batch(keys, {}, torch.arange(8))
    memory.observe(plan, batch, Embeddings({}, {}, batch.group))
    for stage in plans:
        if stage is plans[1]:
            watch_stage(memory, stage, model)
        memory.commit(stage, model)
        parts = memory.data(stage.directory / "retention" / "m")
        [data] = [data for name, (data, _) in parts.items() if name.endswith("-f")]
        shards = ShardSet.open(data.shards, data.split)
        assert len(shards) > 0
        for sample in map(shards.read, range(len(shards))):
            found = {name: [v.data for v in sample.variants(pattern)] for name, pattern in data.modalities.items()}
            assert {name: sorted(values) for name, values in found.items()} == {"a": [a, a, both], "b": [both, b]}
            assert all(v.name.endswith(".npy") for v in sample.variants(data.modalities["a"]))
            assert len(sample.members) == 4


def test_a_memory_that_is_gone_is_an_error_before_the_stage(workshop) -> None:
    plans, model = workshop.plans(steps=3), workshop.model()
    replay = Replay(capacity=5)
    workshop.train(plans[0], model, {"m": replay})
    import shutil

    shutil.rmtree(plans[0].directory / "retention" / "m" / "after-01")
    with pytest.raises(FileNotFoundError, match="after-01"):
        replay.prepare(plans[1].clone(), model)


@pytest.mark.parametrize("policy", [Uniform(), BalancedByStage(), Ring(), HardestK()], ids=lambda p: type(p).__name__)
def test_one_two_and_four_ranks_hold_the_same_set(workshop, policy: Policy) -> None:
    plans, model = workshop.plans(steps=3), workshop.model()
    results = {}
    for world in (1, 2, 4):
        for plan in plans:
            plan.directory = workshop.folder / f"run{world}"
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        store = workshop.folder / f"store{world}"
        processes = [
            context.Process(target=_rank, args=(rank, world, store, plans, model, policy, queue))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        states = [queue.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert all(state == states[0] for state in states)  # all ranks the same index and counts
        results[world] = states[0], directory_contents(workshop.folder / f"run{world}")
    assert results[1] == results[2] == results[4]


def _rank(
    rank: int, world: int, store: Path, plans: list[StagePlan], model: Aligner, policy: Policy, queue: Any
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    memory = Memory(11, 2**30, policy)
    for plan in plans:
        watch_stage(memory, plan, model, rank=rank, world=world)
        memory.commit(plan, model)
    state = memory.state_dict()
    state["pool"]["entries"] = {name: column.tolist() for name, column in state["pool"]["entries"].items()}
    queue.put(state)
    distributed.barrier()
    distributed.destroy_process_group()


def directory_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
