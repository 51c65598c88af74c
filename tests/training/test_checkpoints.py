"""Checkpoints: durable, complete, and never code."""

import errno
import io
import os
import pickle
import zipfile

import pytest
import torch

from mmalign.training import checkpoints
from mmalign.training.checkpoints import AtomicCheckpointIO, CheckpointFolder, load_checkpoint, save_atomically


class Canary:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    save_atomically({"mmalign": {"version": 1}, "state_dict": {"w": torch.ones(3)}}, path)
    assert load_checkpoint(path)["state_dict"]["w"].sum() == 3
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("force", ["0", "1"])
def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch, force):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    canary = tmp_path / "canary"
    torch.save({"mmalign": {}, "x": Canary(canary)}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps({"mmalign": {}, "x": Canary(canary)}))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize("failure", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, failure):
    path = tmp_path / "a.ckpt"
    save_atomically({"mmalign": {"version": 1}}, path)

    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failure == "write":
        monkeypatch.setattr(checkpoints.torch, "save", fail)
    else:
        monkeypatch.setattr(os, failure, fail)
    with pytest.raises(OSError, match=r"a\.ckpt.*disk is full.*intact"):
        save_atomically({"mmalign": {"version": 2}}, path)
    monkeypatch.undo()
    assert load_checkpoint(path)["mmalign"]["version"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_folder_finds_the_newest_and_prunes(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.position() is None
    with pytest.raises(FileNotFoundError):
        folder.latest()
    for path in [folder.end_of(0), *(folder.within(1, step) for step in (5, 10, 100))]:
        save_atomically({"mmalign": {}}, path)
    assert folder.position() == (1, 100)
    folder.prune(1)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "stage-00.ckpt",
        "stage-01-step-00000010.ckpt",
        "stage-01-step-00000100.ckpt",
    ]
    save_atomically({"mmalign": {}}, folder.end_of(1))
    assert folder.latest() == folder.end_of(1)
    assert folder.position() == (2, 0)
    folder.prune(2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["stage-00.ckpt", "stage-01.ckpt"]


@pytest.mark.parametrize("load", [load_checkpoint, AtomicCheckpointIO().load_checkpoint])
@pytest.mark.parametrize("damage", ["changed", "truncated", "empty", "text", "pickle", "zip", "code"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage, load):
    path = tmp_path / "a.ckpt"
    weights = torch.full((1000,), 3.0)
    save_atomically({"mmalign": {}, "x": Canary(tmp_path / "canary") if damage == "code" else weights}, path)
    content = path.read_bytes()
    other = {
        "changed": content.replace(weights[:100].numpy().tobytes(), weights[:100].neg().numpy().tobytes()),
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"name: debug\n" * 100,
        "pickle": pickle.dumps({"mmalign": {}}),
        "zip": zipped("notes.txt"),
        "code": content,
    }[damage]
    path.write_bytes(other)
    with pytest.raises(ValueError, match=r"a\.ckpt: (not|a damaged)") as refused:
        load(path)
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "no tensors")
    return file.getvalue()


def test_other_files_are_refused(tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of mmalign"):
        load_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match="missing"):
        load_checkpoint(tmp_path / "missing.ckpt")
