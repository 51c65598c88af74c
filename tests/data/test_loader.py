"""A stage resumes exactly, with and without workers, by itself and under Lightning."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from mmalign.batch import Batch
from mmalign.data.config import ShardData
from mmalign.data.loader import StageLoader
from mmalign.data.stream import Stream
from mmalign.encoders.base import Preprocess


@pytest.fixture
def make_stream(shards: Path, preprocess: dict[str, Preprocess]) -> Any:
    def make(**changes: Any) -> Stream:
        data = ShardData(str(shards), modalities={"image": "png", "text": "captions[*]"})
        settings = {"batch_size": 4, "seed": 0, "stage": "s", "steps": 10} | changes
        return Stream({"a": (data, 1.0)}, preprocess, **settings)

    return make


def content(batch: Batch) -> tuple[list[str], bytes]:
    values = batch.modalities["image"].values
    assert values is not None
    return batch.keys, values.numpy().tobytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_where_it_was(make_stream: Any, workers: int) -> None:
    whole = [content(batch) for batch in StageLoader(make_stream())]
    assert len(whole) == len(StageLoader(make_stream())) == 10
    torch.manual_seed(5)
    before = torch.get_rng_state()
    seen, state = [], StageLoader(make_stream()).state_dict()
    for stop in (3, 4, 10):  # interrupted twice, with batches made ahead thrown away
        loader = StageLoader(make_stream(steps=10), workers)
        loader.load_state_dict(torch.load(_saved(state), weights_only=True))
        for batch in loader:
            seen.append(content(batch))
            if loader.step == stop:
                break
        state = loader.state_dict()
    assert seen == whole
    # Reading draws nothing from the training's own generator.
    assert torch.equal(torch.get_rng_state(), before)


def _saved(state: dict[str, Any]) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_pinned_where_asked(make_stream: Any, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor.clone()) or pinned[-1])
    plain = [content(batch) for batch in StageLoader(make_stream(), workers)]
    assert not pinned
    batches = list(StageLoader(make_stream(), workers, pin_memory=True))
    assert [content(batch) for batch in batches] == plain
    assert {id(batch.group) for batch in batches} | {id(b.modalities["text"].mask) for b in batches} <= set(
        map(id, pinned)
    )


def test_another_stream_is_refused(make_stream: Any) -> None:
    state = StageLoader(make_stream()).state_dict()
    StageLoader(make_stream(steps=99, rank=1, world=2)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"seed was 0, is 1; stage was 's', is 't'$"):
        StageLoader(make_stream(seed=1, stage="t")).load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size was 4, is 8"):
        StageLoader(make_stream(batch_size=8)).load_state_dict(state)
    state["settings"]["data"]["a"]["shards"] = "0" * 64
    with pytest.raises(ValueError, match=r"data\.a\.shards was '000"):
        StageLoader(make_stream()).load_state_dict(state)


class Recorder(L.LightningModule):
    """Trains one number; notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Any] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(content(batch))
        values = batch.modalities["image"].values
        assert values is not None
        return (values.mean() - self.weight) ** 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_under_lightning(make_stream: Any, tmp_path: Path, workers: int) -> None:
    def trainer(steps: int) -> L.Trainer:
        return L.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )

    whole = Recorder()
    trainer(10).fit(whole, StageLoader(make_stream()))
    first, second = Recorder(), Recorder()
    part = trainer(4)
    part.fit(first, StageLoader(make_stream(), workers))
    part.save_checkpoint(tmp_path / "x.ckpt")
    trainer(10).fit(second, StageLoader(make_stream(), workers), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert (len(first.seen), len(second.seen)) == (4, 6)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


class Deadly(Stream):
    def __getitem__(self, step: int) -> Batch:
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(step)


def test_a_killed_worker_is_a_clear_error(make_stream: Any) -> None:
    stream = make_stream()
    stream.__class__ = Deadly
    with pytest.raises(RuntimeError, match="a data worker was killed"):
        list(StageLoader(stream, workers=1))


class Terminated(Stream):
    signal_number: signal.Signals

    def __getitem__(self, step: int) -> Batch:
        if step == 2:
            os.kill(os.getpid(), self.signal_number)
        return super().__getitem__(step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_a_signal_so_that_the_step_can_end(make_stream: Any, number: signal.Signals) -> None:
    stream = make_stream()
    stream.__class__, stream.signal_number = Terminated, number
    assert [content(b) for b in StageLoader(stream, workers=1)] == [content(b) for b in StageLoader(make_stream())]


def test_storage_errors_reach_the_training(make_stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mmalign.data.shardset._RETRY_DELAYS_SECONDS", ())
    monkeypatch.setattr(os, "pread", failing)
    for workers in (0, 1):
        with pytest.raises(OSError, match=r"train-00000\d\.tar"):
            list(StageLoader(make_stream(), workers))
