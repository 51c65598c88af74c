"""Exact search equals the full matrix; an index is measured against it; the command asks with a text or a file."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import mmalign.training.load
from mmalign.cli import main
from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.data.sources.base import json_member
from mmalign.encoders import TextBytes
from mmalign.evaluation.search import AUTO, Gallery, default_index, exact_search
from mmalign.model import Aligner
from tests.evaluation.conftest import DIM, ReadOut, npy, read_out_model


def unit(rows: int, dim: int = 32, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def names(count: int) -> list[str]:
    return [f"k{i}" for i in range(count)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 50), st.integers(1, 16), st.booleans(), st.integers(0, 99))
def test_exact_search_is_that_of_the_full_matrix(queries, items, top, tile, coarse, seed):
    generator = torch.Generator().manual_seed(seed)
    # small whole numbers: float32 sums are exact in any order, and equal scores abound when there are few of them
    asked, held = (
        torch.randint(-1, 2 if coarse else 90, (n, 4), generator=generator).float() for n in (queries, items)
    )
    found = exact_search(asked, held, top, tile)
    scores, order = (asked @ held.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.scores, scores[:, :top])
    assert torch.equal(found.items, order[:, :top])


def test_ties_go_to_the_first_item_in_every_tile():
    found = exact_search(unit(3), torch.eye(1, 32).expand(100, -1), 7, tile=16)
    assert torch.equal(found.items, torch.arange(7).expand(3, -1))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="2 vectors, but 3 keys"):
        Gallery(unit(2), names(3))
    with pytest.raises(ValueError, match="gallery: 1 of 2 embeddings are not finite"):
        Gallery(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]), names(2))
    with pytest.raises(ValueError, match="top is 0"):
        Gallery(unit(2), names(2)).search(unit(1), 0)


def test_an_absent_faiss_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert Gallery(unit(5), names(5)).recall(3) == (1.0, 5)  # exact search needs none
    with pytest.raises(ImportError, match=r"pip install 'mmalign\[search\]'"):
        Gallery(unit(5), names(5), AUTO)


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss")


def test_an_exact_index_finds_everything(faiss):
    gallery, queries = Gallery(unit(300), names(300), "Flat"), unit(40, seed=1)
    found, exact = gallery.search(queries, 10), gallery.exact(queries, 10)
    assert torch.equal(found.items, exact.items)
    torch.testing.assert_close(found.scores, exact.scores)
    assert gallery.recall(10, queries) == (1.0, 40)
    assert gallery.recall(500, queries) == (1.0, 40)  # more than there are
    assert Gallery(unit(1).expand(64, -1), names(64), "Flat").recall(5).share == 1  # which of equal ones is no matter


@pytest.mark.parametrize("index", [AUTO, "HNSW16,Flat:efSearch=64", "IVF16,Flat:nprobe=8"])
def test_an_approximate_index_finds_most(faiss, index):
    centres = unit(20, seed=2)
    rows = F.normalize(centres.repeat(50, 1) + 0.5 * unit(1000, seed=3), dim=1)
    gallery = Gallery(rows, names(1000), index)
    assert gallery.recall(10).share > 0.9
    assert gallery.recall(10).queries == 256
    first = gallery.search(rows[:50], 3)
    assert torch.equal(first.items[:, 0], torch.arange(50))


def test_recall_is_the_share_that_is_found(faiss):
    gallery, queries = Gallery(unit(400), names(400), "IVF16,Flat:nprobe=1"), unit(64, seed=1)
    found, exact = gallery.search(queries, 40), gallery.exact(queries, 40)
    shares = [len(set(a.tolist()) & set(b.tolist())) / 40 for a, b in zip(found.items, exact.items, strict=True)]
    assert gallery.recall(40, queries).share == pytest.approx(np.mean(shares))
    assert 0 < np.mean(shares) < 0.9
    short = found.items < 0  # one list holds about 25
    assert short.any()
    assert (found.scores[short] == -torch.inf).all()


def test_what_faiss_refuses_is_told_with_the_name(faiss):
    with pytest.raises(ValueError, match=r"index 'Bogus': could not parse index string Bogus$"):
        Gallery(unit(9), names(9), "Bogus")
    with pytest.raises(ValueError, match=r"index 'Flat:nprobe=3': .*could not set parameter nprobe"):
        Gallery(unit(9), names(9), "Flat:nprobe=3")
    with pytest.raises(ValueError, match="index 'IVF64,Flat': Number of training points"):
        Gallery(unit(9), names(9), "IVF64,Flat")


def test_the_default_follows_the_size():
    assert default_index(1000) == "HNSW32,Flat:efSearch=128"
    assert default_index(100_000) == "IVF512,SQfp16:nprobe=5"


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty samples whose two arrays point the same way, and a model that reads them out (its text tower is new)."""
    vectors = unit(30, DIM).numpy()
    samples = [
        RawSample(
            f"s{i:02}",
            {
                "a.npy": npy(vectors[i]),
                "b.npy": npy(vectors[i]),
                "json": json_member({"captions": {"fr": [f"le\n{i}\x1b[2J"]}}),
            }
            | ({"txt": f"number {i}".encode()} if i % 2 else {}),
        )
        for i in range(30)
    ]
    write_shards(tmp_path / "made", "test", samples)
    build_index(tmp_path / "made")
    (tmp_path / "query.npy").write_bytes(npy(vectors[7]))
    arrays = read_out_model(["a", "b"])
    model = Aligner({"a": ReadOut(), "b": ReadOut(), "text": TextBytes(width=16, depth=1, heads=2)}, dim=DIM)
    model.load_state_dict(arrays.state_dict(), strict=False)
    monkeypatch.setattr(mmalign.training.load, "load_model", lambda path: (model.eval(), {}))
    return tmp_path


def ask(scenes: Path, *arguments: str) -> int:
    members = ["--modalities", "a=a.npy", "b=b.npy"]
    return main(["search", "run", "--data", str(scenes / "made"), *members, *arguments])


def test_a_file_finds_its_like(scenes, capsys):
    assert ask(scenes, "--file", str(scenes / "query.npy"), "--as", "a", "--modality", "b", "--top", "30") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30
    assert lines[0] == " 1.000  made/s07  number 7"
    assert any(line.endswith("made/s04  le 4�[2J") for line in lines)
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)


def test_a_text_asks_and_is_found(scenes, capsys):
    assert ask(scenes, "--text", "number 9", "--modality", "text", "--top", "2") == 0
    assert capsys.readouterr().out.splitlines()[0] == " 1.000  made/s09  number 9"


def test_the_model_goes_to_the_device(scenes, monkeypatch):
    moved = []
    monkeypatch.setattr(Aligner, "to", lambda model, device: moved.append(device))
    assert ask(scenes, "--text", "number 9", "--modality", "text", "--device", "cpu") == 0
    assert moved == [torch.device("cpu")]


def test_the_index_comes_with_its_recall(scenes, capsys, faiss):
    assert ask(scenes, "--text", "number 9", "--modality", "a", "--top", "5", "--index", "Flat") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "recall@5 of Flat against exact search: 1.000, over 15 text queries of the split"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--text", "x", "--modality", "imagine"], "the model has no encoder 'imagine'"),
        (["--text", "x", "--modality", "a", "--modalities", "c=c.npy"], "the model has no encoder 'c'"),
        (["--text", " ", "--modality", "a"], "--text: 'txt': the text is empty"),
        (["--text", "x", "--modality", "a", "--top", "0"], "--top is 0"),
        (["--text", "x", "--modality", "a", "--as", "b"], "--as: no encoder 'b' of the model reads text"),
        (["--file", "{}/none.npy", "--modality", "a"], "none.npy: no such file"),
        (["--file", "{}/query.xyz", "--modality", "a"], "'xyz' is not read; only png"),
        (["--file", "{}/bad.png", "--modality", "a"], "no encoder of the model reads image; it has a, b, text"),
        (
            ["--file", "{}/query.npy", "--modality", "a"],
            "several encoders of the model read array, say which with --as",
        ),
        (["--file", "{}/bad.npy", "--modality", "a", "--as", "a"], "bad.npy: 'npy': "),
        (["--text", "x", "--modality", "a", "--index", "Bogus"], "could not parse index string Bogus"),
        (["--text", "x", "--modality", "a", "--split", "train"], "has no split 'train'"),
        (["--text", "x", "--modality", "a", "--device", "gpu"], "--device 'gpu' is none of auto, cpu"),
        (["--text", "x", "--modality", "a", "--modalities", "a"], "--modalities a: write it as NAME=PATTERN"),
    ],
)
def test_mistakes_are_one_line_before_long_work(scenes, capsys, monkeypatch, arguments, error, faiss):
    for name in ("bad.npy", "bad.png"):
        (scenes / name).write_bytes(b"no such thing")
    monkeypatch.setattr("mmalign.evaluation.search_command.embed_modality", lambda *_, **__: pytest.fail("long work"))
    assert ask(scenes, *(argument.format(scenes) for argument in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert error in line
