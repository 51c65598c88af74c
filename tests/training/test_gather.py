"""One global batch on 1, 2 and 4 ranks: the same loss, and the same gradient of every parameter."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.batch import Embeddings
from mmalign.training.gather import ddp_scale, gather

WORKER = Path(__file__).with_name("gather_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By number of ranks, what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    for world in (1, 2, 4):
        ranks = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(rank), str(world), str(folder)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        for rank in ranks:
            _, errors = rank.communicate(timeout=200)
            assert rank.returncode == 0, errors
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        for world in (1, 2, 4)
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "ragged", "empty"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_with_one_process(results, world, case):
    expected = results[1][0][case]
    assert {"losses.infonce.scale.log", "losses.siglip.logit_bias"} <= set(expected["gradients"])
    for found in (rank[case] for rank in results[world]):
        assert torch.allclose(found["loss"], expected["loss"], rtol=1e-12, atol=0)
        for name, gradient in expected["gradients"].items():
            error = (found["gradients"][name] - gradient).norm()
            assert error <= 1e-12 * gradient.norm().clamp(min=1e-3), f"{name}: {error:.1e}"


@pytest.mark.slow
def test_uneven_ranks_are_told_so(results):
    for rank in results[2]:
        assert "different numbers of rows ([6, 5])" in rank["uneven"]


def test_one_process_is_left_alone():
    values = Embeddings({"a": torch.zeros(2, 3)}, {"a": torch.ones(2, dtype=torch.bool)}, torch.arange(2))
    assert gather(values) is values
    assert ddp_scale(torch.tensor(3.0)).item() == 3.0
