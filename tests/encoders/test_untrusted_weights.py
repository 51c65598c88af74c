"""A file of weights is tensors or an error, whoever reads it and whatever the environment says."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.encoders import AudioAISFX, ImageOpenClip, ImageTimm, TextCausalHF
from mmalign.encoders.weights import load_tensors
from mmalign.training.checkpoints import AtomicCheckpointIO, load_checkpoint
from mmalign.training.load import load_model
from tests.encoders.conftest import hf_folder  # noqa: F401


class Canary:
    """Unpickling this makes the file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def in_a_run(file: Path) -> None:
    run = file.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    file.rename(run / "checkpoints" / "stage-01.ckpt")
    load_model(run)


def open_clip_pretrained(file: Path) -> None:
    config = json.loads((Path(__import__("open_clip").__file__).parent / "model_configs" / "ViT-B-32.json").read_text())
    config["vision_cfg"] |= {"layers": 1, "width": 32, "head_width": 16}
    config["text_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    __import__("open_clip").add_model_config(_written(file.parent / "canary-test.json", config))
    ImageOpenClip("canary-test", pretrained=str(file))


def _written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


READERS: dict[str, Callable[[Path], Any]] = {
    "a checkpoint": load_checkpoint,
    "a checkpoint, as a model": load_model,
    "a run": in_a_run,
    "Lightning's way": lambda file: AtomicCheckpointIO().load_checkpoint(file, weights_only=False),
    "a tower's weights": load_tensors,
    "timm, weights": lambda file: ImageTimm("vit_tiny_patch16_224", weights=str(file), options={"depth": 1}),
    "timm, its own option": lambda file: ImageTimm(
        "vit_tiny_patch16_224", options={"depth": 1, "checkpoint_path": str(file)}
    ),
    "open_clip": open_clip_pretrained,
    "the sound-effect network": lambda file: AudioAISFX(weights=str(file)),
}


@pytest.fixture(params=[None, "1"], ids=["plain", "forced"])
def environment(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second asks torch to unpickle whatever it is given."""
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    if request.param is not None:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", request.param)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_unpickles(reader: str, form: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / "weights.pt"
    content = {"mmalign": {}, "state_dict": {"w": Canary(canary)}}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises((ValueError, RuntimeError, OSError, pickle.UnpicklingError)):
        READERS[reader](file)
    assert not canary.exists()


@pytest.mark.usefixtures("environment")
def test_hugging_face_weights(hf_folder: Callable[[str], Path], tmp_path: Path) -> None:  # noqa: F811
    folder, canary = hf_folder("llama"), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Canary(canary)}, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, RuntimeError, OSError, pickle.UnpicklingError)):
        TextCausalHF(str(folder), max_length=16)
    assert not canary.exists()


def test_the_canary_is_a_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": Canary(tmp_path / "canary")}, tmp_path / "weights.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.load(tmp_path / "weights.pt")
    assert (tmp_path / "canary").exists()
