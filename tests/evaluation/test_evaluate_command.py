"""`mmalign evaluate` measures what model and data share, and says in one line where that is not enough."""

import pytest
import torch
from torch.nn import functional as F

import mmalign.training.load
from mmalign.cli import main
from mmalign.evaluation.table import read_rows
from mmalign.model import Aligner
from tests.evaluation.conftest import DIM, read_out_model

FACTS = {"config": {"name": "r", "seed": 0}, "stage_index": 1, "total_step": 2, "trained_pairs": [["a", "b"]]}
NAMES = ["a", "b"]


@pytest.fixture
def shards(make_data, monkeypatch):
    vectors = F.normalize(torch.randn(12, DIM, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    data = make_data([{"a": v, "b": v} if i < 6 else {"c": v} for i, v in enumerate(vectors)])
    monkeypatch.setattr(mmalign.training.load, "load_model", lambda path: (read_out_model(NAMES).eval(), FACTS))
    return data.shards


def test_rows_and_table(shards, tmp_path, capsys, monkeypatch):
    moved = []
    monkeypatch.setattr(Aligner, "to", lambda model, device: moved.append(device))
    members = ["--modalities", "a=a.npy", "b=b.npy", "--device", "cpu"]
    assert main(["evaluate", "run", "--data", shards, *members, "--out", str(tmp_path / "rows.jsonl")]) == 0
    rows = {(row.direction, row.metric): row for row in read_rows(tmp_path / "rows.jsonl")}
    assert rows["a->b", "R@1"].value == rows["b->a", "R@1"].value == 1.0
    assert rows["a->b", "R@1"].n_missing == 6
    assert "b->a" in capsys.readouterr().out
    assert moved == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--modalities", "a=a.npy", "x=b.npy"], "the model has no encoder 'x'; There are"),
        (["--modalities", "a=a.npy", "b=d.npy"], "modalities.b: 'd.npy' is in none of 12 samples"),
        (["--modalities", "a=a.npy"], "retrieval needs two modalities; of a (a.npy), the split 'test' has a ("),
        (["--modalities", "a"], "--modalities a: write it as NAME=PATTERN"),
        ([], "retrieval needs two modalities; of a (npy), b (npy), the split 'test' has none ("),
        (["--device", "tpu"], "--device 'tpu' is none of auto"),
        (["--gallery", "0"], "limit: is 0, must be at least 1"),
    ],
)
def test_too_little_is_told_before_anything_is_embedded(shards, capsys, monkeypatch, arguments, error):
    monkeypatch.setattr("mmalign.evaluation.retrieval.embed_modality", lambda *_, **__: pytest.fail("long work"))
    assert main(["evaluate", "run", "--data", shards, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert error in line


@pytest.mark.filterwarnings("ignore:.*items cannot be used")
def test_nothing_usable_is_an_error_and_no_table(shards, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    members = ["--modalities", "a=a.npy", "b=c.npy", "--out", str(out)]  # never in one sample
    assert main(["evaluate", "run", "--data", shards, *members]) == 2
    assert "no item of the split 'test' has a usable partner in another modality" in capsys.readouterr().err
    assert not out.exists()
