"""An export gives back the same model, needs nothing but itself, and never runs code."""

import json
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mmalign
from mmalign.batch import Values
from mmalign.cli import main
from mmalign.export.card import plain, tower_licence
from mmalign.model import Aligner
from mmalign.training.config import build_part, check_config
from mmalign.training.load import load_model
from mmalign.training.yaml_config import ConfigError, override, read_config
from tests.encoders.conftest import hf_folder  # noqa: F401

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
TEXT = "model.init_args.encoders.text"


def checkpoint(path: Path, overrides: dict[str, Any] | None = None) -> tuple[Path, Aligner]:
    """What a run saves at the end of its first stage, with random weights."""
    config = check_config(read_config(DEBUG, overrides))
    torch.manual_seed(1)
    model: Aligner = build_part(config["model"], Aligner).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    facts = {
        "version": 1,
        "config": config,
        "stage_index": 1,
        "total_step": 20,
        "spec": {name: tower.spec for name, tower in model.encoders.items()},
        "trained_pairs": [["image", "text"]],
        "stages": [{"name": "image_text", "steps": 20, "batch_size": 32, "trainable": {}}],
    }
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"mmalign": facts, "state_dict": state}, path)
    return path, model


def embeddings(model: Aligner) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 255, (50, 40, 3), generator=generator, dtype=torch.uint8).numpy()
    sound = torch.randn(4000, generator=generator).numpy()
    values = {"image": Image.fromarray(pixels), "audio": (sound, 8000), "text": "the small red circle"}
    found = {}
    with torch.no_grad():
        for name, value in values.items():
            preprocess = model.tower(name).preprocess
            batch, mask = preprocess.collate([preprocess.prepare(value, None)])
            found[name] = model.embed(name, Values(torch.ones(1, dtype=torch.bool), batch, mask))
        present = {name: torch.ones(1, dtype=torch.bool) for name in found}
        return found | {"fused": model.fuse(found, present)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Aligner]:
    folder = tmp_path_factory.mktemp("export")
    file, model = checkpoint(folder / "run" / "checkpoints" / "stage-01.ckpt")
    assert main(["export", str(file), "--out", str(folder / "out")]) == 0
    return folder / "out", model


@pytest.fixture
def damaged(exported: tuple[Path, Aligner], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported[0], tmp_path / "copy"))


def test_the_same_embeddings_in_every_bit(exported: tuple[Path, Aligner]) -> None:
    directory, model = exported
    assert sorted(path.name for path in directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = mmalign.load(directory)
    assert not again.training
    expected, found = embeddings(model), embeddings(again)
    assert found.keys() == expected.keys() == {"image", "audio", "text", "fused"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {n: t.spec for n, t in again.encoders.items()} == {n: t.spec for n, t in model.encoders.items()}


def test_all_files_have_the_mode_that_the_umask_gives(exported: tuple[Path, Aligner]) -> None:
    assert len({path.stat().st_mode for path in exported[0].iterdir()}) == 1


def test_checkpoints_runs_and_exports_load_alike(exported: tuple[Path, Aligner]) -> None:
    directory, model = exported
    run = directory.parent / "run"
    paths = (directory, str(directory), run, run / "checkpoints" / "stage-01.ckpt")
    for state in (mmalign.load(path).state_dict() for path in paths):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    facts = load_model(directory)[1]
    of_run = load_model(run)[1]
    for key in ("stage_index", "total_step", "trained_pairs"):
        assert facts[key] == of_run[key]
    assert all(facts["config"][key] == of_run["config"][key] for key in ("name", "seed"))


@pytest.mark.parametrize(("architecture", "kind"), [("bert", "TextHF"), ("llama", "TextCausalHF")])
def test_hugging_face_towers_need_nothing_but_the_export(
    architecture: str,
    kind: str,
    hf_folder: Callable[[str], Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in hf_folder(architecture).iterdir():
        if path.is_file():
            path.rename(source / path.name)
    tower = {"class_path": f"mmalign.encoders.{kind}", "init_args": {"model": str(source), "max_length": 32}}
    file, model = checkpoint(tmp_path / "a.ckpt", {TEXT: tower})
    out = tmp_path / "out"
    assert main(["export", str(file), "--out", str(out)]) == 0
    shutil.rmtree(source)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("an export was loaded over the network"))
    again = mmalign.load(out.rename(tmp_path / "moved"))
    expected, found = embeddings(model), embeddings(again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if kind == "TextCausalHF":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = tmp_path / "moved" / "text"
        ids = AutoTokenizer.from_pretrained(folder)("the thing", return_tensors="pt").input_ids
        with torch.no_grad():
            plain_logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
            assert torch.equal(plain_logits, model.encoders["text"].lm(ids).logits)


def test_nothing_is_overwritten_and_nothing_is_half(
    exported: tuple[Path, Aligner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    directory, _ = exported
    file = directory.parent / "run" / "checkpoints" / "stage-01.ckpt"
    assert main(["export", str(file), "--out", str(directory)]) == 2
    assert "holds something already" in capsys.readouterr().err

    def fail(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmalign.export.card.model_card", fail)
    assert main(["export", str(file), "--out", str(tmp_path / "out")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_card(exported: tuple[Path, Aligner]) -> None:
    text = (exported[0] / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: mmalign\n")
    for part in ("`mmalign.encoders.ImageTimm`", "image\\_text", "## Licences", "random weights", "data scenes"):
        assert part in text
    assert plain("<script>\n| [a](b)") == "&lt;script&gt; \\| \\[a\\](b)"
    assert tower_licence({"init_args": {"model": "minilm"}}) == "minilm, Apache-2.0"
    assert tower_licence({"init_args": {"model": "somebody/bert"}}) == "somebody/bert, see its publisher"


# --- an export may come from anywhere ------------------------------------------------------------------------------


def rewrite(directory: Path, key: str, value: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(override(json.loads(path.read_text()), {key: value})))


EVIL = {"class_path": "evil_module.Evil"}
HF = "mmalign.encoders.TextHF"
FOREIGN: dict[str, tuple[str, Any]] = {
    "a foreign class": ("model.init_args.encoders.image", EVIL),
    "a program": ("model.init_args.fusion", {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "x"]}}),
    "a foreign class, as a text": ("model.init_args.fusion", "evil_module.Evil"),
    "a foreign model": ("model", EVIL),
    "a foreign class in free settings": ("model.init_args.encoders.image.init_args.options.x", json.dumps(EVIL)),
    "remote code": (TEXT, {"class_path": HF, "init_args": {"model": "./text", "trust_remote_code": True}}),
    "a model of the hub": (TEXT, {"class_path": HF, "init_args": {"model": "a/b", "pretrained": False}}),
    "weights of elsewhere": (TEXT, {"class_path": HF, "init_args": {"model": "./text", "pretrained": True}}),
    "another folder": (TEXT, {"class_path": HF, "init_args": {"model": "../../text", "pretrained": False}}),
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "evil_module.py").write_text("open('canary', 'w')\nclass Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    return tmp_path / "canary"


@pytest.mark.parametrize(("key", "value"), FOREIGN.values(), ids=FOREIGN)
def test_a_configuration_runs_nothing(damaged: Path, canary: Path, key: str, value: Any) -> None:
    rewrite(damaged, f"config.{key}", value)
    with pytest.raises(ValueError, match=r"config\.json"):
        mmalign.load(damaged)
    assert not canary.exists()
    assert not (canary.parent / "x").exists()


def test_remote_code_in_a_towers_own_configuration(damaged: Path, canary: Path) -> None:
    """transformers would import `modeling.py` if it were allowed to."""
    tower = {"class_path": HF, "init_args": {"model": "./text", "pretrained": False}}
    rewrite(damaged, f"config.{TEXT}", tower)
    folder = damaged / "text"
    folder.mkdir()
    names = {"AutoConfig": "modeling.Evil", "AutoModel": "modeling.Evil"}
    config = {"model_type": "evil", "auto_map": names, "trust_remote_code": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises((ValueError, OSError)):
        mmalign.load(damaged)
    assert not canary.exists()


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize("form", ["pickle", "torch", "rubbish", "other weights"])
def test_a_pickle_that_is_called_safetensors(
    damaged: Path, canary: Path, form: str, force: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    weights = damaged / "model.safetensors"
    if form == "pickle":
        weights.write_bytes(pickle.dumps(Canary(canary)))
    elif form == "torch":
        torch.save({"w": Canary(canary)}, weights)
    elif form == "rubbish":
        weights.write_bytes(b"\xff" * 100)
    else:
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(2)}, weights)
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights of this configuration"):
        mmalign.load(damaged)
    assert not canary.exists()
    if form == "pickle":  # the canary is a real one
        pickle.loads(weights.read_bytes()).close()
        assert canary.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "config": 3}', "\xff"])
def test_a_damaged_configuration(damaged: Path, content: str) -> None:
    (damaged / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json"):
        mmalign.load(damaged)


def test_other_preprocessing_is_noticed(damaged: Path) -> None:
    rewrite(damaged, "spec.image.preprocess.size", 65)
    with pytest.raises(ValueError, match="prepare inputs otherwise"):
        mmalign.load(damaged)


def test_a_users_own_class_is_refused_when_it_is_exported(canary: Path, tmp_path: Path, capsys: Any) -> None:
    file, _ = checkpoint(tmp_path / "a.ckpt")
    content = torch.load(file, weights_only=True)
    content["mmalign"]["config"]["model"]["init_args"]["encoders"]["image"] = EVIL
    torch.save(content, file)
    assert main(["export", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "'evil_module.Evil' is outside of mmalign" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        load_model(file)
    assert not canary.exists()
