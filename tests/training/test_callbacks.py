"""What ranks agree on between two steps."""

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import torch
import torch.distributed as dist

from mmalign.batch import Batch
from mmalign.training.callbacks import Checkpoints, StepsBar
from mmalign.training.checkpoints import CheckpointFolder
from mmalign.training.module import AlignmentModule

LATE = float("-inf")  # when the last checkpoint was saved


def on_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    exchanges: list[int] = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda tensor, **how: exchanges.append(tensor.numel()) or all_reduce(tensor, **how)
    module = AlignmentModule.__new__(AlignmentModule)
    L.LightningModule.__init__(module)
    module.plan = SimpleNamespace(index=1, name="s")
    saved: list[int] = []
    trainer = Mock(
        spec=L.Trainer,
        max_steps=9,
        is_global_zero=rank == 0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        save_checkpoint=lambda path: saved.append(trainer.global_step),
    )
    callback = Checkpoints(CheckpointFolder(folder, 9), every_steps=6, every_minutes=60.0)
    batch, code = Batch(["a/0"], {}, torch.zeros(1, dtype=torch.long)), 0
    try:
        for trainer.global_step in range(1, 10):
            if trainer.global_step == 2 + rank:  # 2 on rank 0, which all follow; 3 on rank 1, which none does
                callback._saved = LATE
            if trainer.global_step == 8 and rank == 1:
                callback.terminated.set()
            callback.on_train_batch_end(trainer, module, None, batch, 0)
    except SystemExit as ended:
        code = ended.code  # type: ignore[assignment]
    (folder / f"{rank}.json").write_text(json.dumps([saved, code, exchanges]))


def test_all_ranks_save_and_end_at_the_same_step(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=on_rank, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [[2, 6, 8], 143, [3] * 8]


def test_the_progress_bar_names_the_stage_and_no_epoch() -> None:
    module = AlignmentModule.__new__(AlignmentModule)
    L.LightningModule.__init__(module)
    module.plan = SimpleNamespace(name="speech")
    bar = StepsBar()
    bar._trainer = Mock(spec=L.Trainer, num_training_batches=5, current_epoch=0, lightning_module=module)
    bar.train_progress_bar = Mock()
    bar.on_train_epoch_start(bar._trainer)
    assert bar.train_progress_bar.set_description.call_args.args == ("speech, step",)
    assert bar.train_progress_bar.total == 5
