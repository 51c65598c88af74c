"""The benchmarks for GPUs, at small sizes and on the CPU: what they compute, not how fast."""

import numpy as np
import pytest

from mmalign.bench.base import NO_BAR, Ceilings, Settings
from mmalign.bench.catalogue import NAMES, find
from mmalign.bench.loss_step import loss_step
from mmalign.bench.ratios import Row
from mmalign.bench.results import open_results, put_rows, save
from mmalign.bench.run import describe, run_side
from mmalign.bench.worker import PREPARE
from mmalign.cli import main
from mmalign.report.readme import readme_table

SMALL = Settings(threads=1, scale=0.02)
ON_GPU = [name for name in NAMES if find(name).device == "cuda"]


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_both_sides_compute_the_same_loss(loss):
    ours, theirs = (loss_step(96, loss, peer)().arrays for peer in (None, "open_clip"))
    assert ours.keys() == theirs.keys() == {"loss", "gradient.x", "gradient.y", "gradient.log_scale"}
    for name in ours:
        assert np.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-7), name


def test_every_step_has_gradients_of_its_own():
    step = loss_step(32)
    first, second = (step().arrays["gradient.x"].copy() for _ in range(2))
    assert np.array_equal(first, second)


def test_a_loss_side(tmp_path):
    sample = run_side("cuda-infonce-8192", "mmalign-bf16", SMALL, tmp_path)
    assert 0 < sample.measures["share"] < 1
    whole = run_side("cuda-infonce-8192", "mmalign", SMALL, tmp_path)
    assert np.allclose(sample.arrays["loss"], whole.arrays["loss"], rtol=1e-2)


@pytest.mark.parametrize(("name", "side"), [("cuda-training", "bf16"), ("cuda-frozen-towers", "cached")])
def test_a_whole_training(tmp_path, name, side):
    run_side(name, PREPARE, SMALL, tmp_path)
    sample = run_side(name, side, SMALL, tmp_path)
    assert sample.measures["rate"] > 0
    assert len(sample.arrays["losses"]) == 10


@pytest.mark.parametrize("name", ON_GPU)
def test_every_row_is_of_sides_that_run(name):
    rows = find(name).quantities
    assert {side for row in rows for side in (row.side, row.other) if side} == set(find(name).sides)
    assert len({(row.label, row.peer) for row in rows}) == len(rows)


def test_a_figure_without_a_bar_is_no_miss(tmp_path):
    rows = [
        Row("cuda-infonce-8192", "open_clip", "time", 0.4, 0.3, 0.5, NO_BAR, holds=False, pairs=5),
        Row("cuda-infonce-8192", "open_clip", "difference", 1e-7, 1e-7, 1e-7, "<= 1e-5", holds=True, pairs=5),
    ]
    assert "on record" in describe(rows[0])
    content = open_results(tmp_path / "figures.json", SMALL)
    put_rows(content, rows, Ceilings(1e11, 2e11, 1e9, 1e10))
    save(tmp_path / "figures.json", content)
    table = readme_table(tmp_path / "figures.json")
    assert "| time | open_clip | 0.400 (0.300 … 0.500) | – | – |" in table
    assert "1 of 1 bars are reached." in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["infonce", "--device", "cuda"], "'infonce' is for --device cpu"),
        (["cuda-training"], "'cuda-training' is for --device cuda"),
        (["--growth", "--device", "cuda"], "--growth is measured on the cpu"),
    ],
)
def test_what_does_not_go_together(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "0 devices" in capsys.readouterr().err
