"""Two processes give the rows of one."""

import multiprocessing
import os
import socket
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmalign.data.config import ShardData
from mmalign.encoders.text_bytes import TextBytes
from mmalign.evaluation.base import Evaluator, Moment
from mmalign.evaluation.language import LanguageModeling
from mmalign.evaluation.retrieval import Retrieval
from mmalign.evaluation.run import evaluate_all
from mmalign.model import Aligner
from tests.evaluation.conftest import DIM, MeanFusion, ReadOut


def evaluation(data: ShardData, texts: ShardData) -> str:
    torch.manual_seed(5)
    encoders = {"image": ReadOut(), "audio": ReadOut(), "text": TextBytes(width=16, depth=1, heads=2)}
    model = Aligner(encoders, dim=DIM, fusion=MeanFusion())
    nn.init.eye_(model.projections["image"].linear.weight)
    evaluators: dict[str, Evaluator] = {
        "retrieval": Retrieval(data, batch_size=4, min_language_items=3),
        "language": LanguageModeling(texts),
    }
    moment = Moment("run", "start", 0, 0, 0, frozenset())
    return "\n".join(str(row) for row in evaluate_all(model, evaluators, moment))


def on_rank(rank: int, world: int, port: int, data: ShardData, texts: ShardData, results) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    results.put((rank, evaluation(data, texts)))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_equal_one(make_data: Callable[..., ShardData], world: int) -> None:
    generator = np.random.default_rng(0)
    samples = []
    for i in range(21):
        one = generator.standard_normal(DIM)
        sample = {"png": one, "flac.en": one + generator.standard_normal(DIM), "flac.fr": one}
        if i % 3 == 0:
            del sample["flac.en"]
        samples.append(sample)
    data = make_data(
        samples,
        groups=[f"g{i // 2}" for i in range(21)],
        modalities={"image": "png.npy", "audio": "flac.*.npy"},
        texts=[f"the text of number {i} " * (1 + i % 3) for i in range(21)],
    )
    texts = ShardData(data.shards, "test", {"text": "txt"})
    expected = evaluation(data, texts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=on_rank, args=(r, world, port, data, texts, results)) for r in range(world)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    assert len(expected.splitlines()) > 50
    for rank in range(world):
        assert found[rank] == expected, f"rank {rank}"
