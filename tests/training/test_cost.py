"""What a stage is said to cost."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmalign.batch import Batch, Tokens, Values
from mmalign.data.config import ShardData
from mmalign.encoders.base import Axis, Encoder, SeriesPreprocess
from mmalign.encoders.text_open_clip import TextOpenClip
from mmalign.losses import InfoNCE
from mmalign.model import Aligner
from mmalign.retention import StagePlan
from mmalign.training.callbacks import peak_memory_bytes, reset_peak_memory
from mmalign.training.cost import CostMeter, real_tokens
from mmalign.training.experiment import Runtime, Stage
from mmalign.training.module import AlignmentModule
from tests.encoders.conftest import open_clip_folder  # noqa: F401

BATCH, LENGTH, CHANNELS, WIDTH, DIM = 6, 5, 3, 7, 4


class Tower(Encoder):
    """Two linear maps at every position; counts how often it is called."""

    def __init__(self) -> None:
        super().__init__(SeriesPreprocess(CHANNELS, 10.0), WIDTH, Axis("frames", hertz=10.0))
        self.first = nn.Linear(CHANNELS, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tokens:
        self.calls += 1
        return Tokens.mean_pooled(self.second(torch.tanh(self.first(values))), mask)


def make_batch() -> Batch:
    everywhere = torch.ones(BATCH, dtype=torch.bool)
    values = {name: Values(everywhere, torch.randn(BATCH, LENGTH, CHANNELS)) for name in "ab"}
    return Batch([str(i) for i in range(BATCH)], values, torch.arange(BATCH))


def make_module(runtime: Runtime) -> AlignmentModule:
    plan = StagePlan(
        index=1, name="one", steps=9, batch_size=BATCH, data={}, losses={"ab": 1.0}, trainable={}, seed=0,
        directory=Path(), pairs={"ab": ("a", "b")},
    )  # fmt: skip
    model = Aligner({"a": Tower(), "b": Tower()}, dim=DIM)
    stage = Stage({"ab": ShardData("none")}, {"ab": 1.0}, steps=9, batch_size=BATCH)
    return AlignmentModule(model, {"ab": InfoNCE("a", "b")}, {}, stage, plan, runtime, {})


@pytest.mark.parametrize(("chunk_size", "recompute", "forward"), [(None, True, 1), (2, False, 1), (2, True, 2)])
def test_operations_of_a_training_step(chunk_size: int | None, recompute: bool, forward: int) -> None:
    module = make_module(Runtime(chunk_size=chunk_size, recompute=recompute))
    with FlopCounterMode(display=False) as counter:
        module.training_step(make_batch(), 0).backward()
    first, second, head = CHANNELS * WIDTH * LENGTH, WIDTH * WIDTH * LENGTH, WIDTH * DIM
    towers = forward * (first + second + head) + first + 2 * second + 2 * head  # data want no gradient
    loss = 3 * BATCH * DIM  # the similarities fit into one tile
    assert counter.get_total_flops() == 2 * BATCH * (2 * towers + loss)
    chunks = 1 if chunk_size is None else BATCH // chunk_size
    assert [tower.calls for tower in module.model.encoders.values()] == [forward * chunks] * 2


class Metered:
    """A meter in a stage whose steps cost what the test says, on two ranks, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, price_per_hour: float = 0.0) -> None:
        self.now = 0.0
        monkeypatch.setattr("mmalign.training.cost.time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr("mmalign.training.cost.matmul_flops", lambda *_: 50.0)
        self.module, self.batch = make_module(Runtime()), make_batch()
        self.meter = CostMeter(price_per_hour)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        self.trainer = Mock(L.Trainer, precision="32-true", strategy=strategy, world_size=2)

    def run(self, products: list[int], wait: float = 1.0, step: float = 3.0) -> None:
        self.meter.on_train_start(self.trainer, self.module)
        for number, count in enumerate(products):
            self.now += wait
            self.meter.on_train_batch_start(self.trainer, self.module, self.batch, number)
            for _ in range(count):
                torch.ones(1, 5) @ torch.ones(5, 1)  # 10 operations
            self.now += step
            self.meter.on_train_batch_end(self.trainer, self.module, None, self.batch, number)


def test_steps_cost_what_the_last_counted_one_did(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Metered(monkeypatch)
    stage.run([9] + [2] * 8 + [3] * 90 + [4] * 2)  # what is remembered is computed once
    assert stage.meter.flops == 2 * 10 * (9 + 8 * 2 + 90 * 3 + 2 * 4)


def test_a_killed_stage_counts_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Metered(monkeypatch, price_per_hour=3600.0)
    stage.run([9, 2, 2])
    state = stage.meter.state_dict()
    stage = Metered(monkeypatch, price_per_hour=3600.0)
    stage.meter.load_state_dict(state)
    stage.run([9, 2])  # remembered things are gone
    cost = stage.meter.result("one", 10.0, 0)
    assert cost.flops == 2 * 10 * (9 + 2 + 2 + 9 + 2)
    assert cost.samples == 2 * 5 * BATCH
    assert (cost.loop_seconds, cost.step_seconds, cost.seconds, cost.price) == (20.0, 15.0, 22.0, 22.0)


def test_rates_are_over_the_loop_and_say_how_much_of_it_was_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Metered(monkeypatch)
    stage.run([1, 1], wait=1.0, step=3.0)
    cost = stage.meter.result("one", 100.0, 0)
    assert cost.data_wait_share == 0.25
    assert cost.samples_per_second == 2 * 2 * BATCH / 8
    assert cost.utilisation == pytest.approx((2 * 2 * 10) / 6 / (2 * 50))


def test_an_exception_ends_the_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Metered(monkeypatch)
    stage.meter.on_train_start(stage.trainer, stage.module)
    stage.meter.on_train_batch_start(stage.trainer, stage.module, stage.batch, 0)
    assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 1
    stage.meter.on_exception(stage.trainer, stage.module, ValueError())
    assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 0


def test_tokens_of_open_clip_are_those_before_the_padding(
    open_clip_folder: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Metered(monkeypatch)
    tower = TextOpenClip(f"local-dir:{open_clip_folder()}")
    texts = ["a frog", "", "a small green frog"]
    ids, mask = tower.preprocess.collate([tower.preprocess.prepare(text, None) for text in texts])
    assert mask is None
    present = torch.tensor([True, True, True, False])
    values = Values(present, torch.cat([ids, torch.full_like(ids[:1], 7)]))
    stage.module.model = Aligner({"a": Tower(), "text": tower}, dim=DIM)
    series = Values(present, torch.randn(4, LENGTH, CHANNELS))
    stage.batch = Batch(["", "", "", ""], {"a": series, "text": values}, torch.arange(4))
    assert int(real_tokens(stage.module.model, stage.batch)) == 4 + 2 + 6
    stage.run([0, 0])
    assert stage.meter.result("one", 1.0, 0).tokens == 2 * 2 * (4 + 2 + 6)


def test_tokens_with_a_mask_are_what_it_says() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    values = Values(torch.tensor([True, True, False]), torch.ones(3, 3, dtype=torch.long), mask)
    batch = Batch(["", "", ""], {"text": values}, torch.arange(3))
    assert int(real_tokens(Aligner({"text": Tower()}, dim=DIM), batch)) == 3


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has a GPU."""
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 3)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    gpu = torch.device("cuda", 1)
    for device in (torch.device("cpu"), gpu):
        reset_peak_memory(device)
    assert asked == [gpu]
    assert peak_memory_bytes(gpu) == 3
    assert peak_memory_bytes(torch.device("cpu")) > 10**7
