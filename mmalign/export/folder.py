"""Writing and reading an export."""

import copy
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign import __version__
from mmalign.encoders.text_hf import TextCausalHF, TextHF
from mmalign.model import Aligner

_FORMAT = 1
_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def export_model(run_or_checkpoint: Path, out: Path) -> Path:
    """Write the folder `out`, complete or not at all.

    `model.safetensors` holds all weights of the Aligner, `config.json` its configuration with the preprocessing of
    every encoder, `README.md` the model card. Each Hugging Face tower has a folder of its name with its configuration
    and tokenizer, so that loading needs no network; that of a causal language model is a complete Hugging Face model,
    for use without mmalign.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or its classes are not those that an export may name (see
            `load_model`); `out` holds something already; or a modality's name cannot be that of a folder.
    """
    from safetensors.torch import save_model

    from mmalign.export.card import model_card
    from mmalign.training.load import load_model

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: holds something already; choose another --out")
    model, facts = load_model(run_or_checkpoint)
    described = _describe(model, facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        save_model(model, str(temporary / _WEIGHTS), {"format": "pt"})
        for name, tower in model.encoders.items():
            if isinstance(tower, TextHF | TextCausalHF):
                tower.save_layout(temporary / name)
        text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
        (temporary / _CONFIG).write_text(text, encoding="utf-8")
        (temporary / _CARD).write_text(model_card(model, facts, run_or_checkpoint), encoding="utf-8")
        for file in temporary.rglob("*.safetensors"):  # which safetensors writes for the user alone
            file.chmod((temporary / _CONFIG).stat().st_mode)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _describe(model: Aligner, facts: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json: of the checkpoint's facts, those that belong to the model."""
    config = {key: facts["config"][key] for key in ("name", "arm", "seed")}
    config["model"] = _without_weights(facts["config"]["model"])
    for name, tower in model.encoders.items():
        if isinstance(tower, TextHF | TextCausalHF):
            if not _NAME.fullmatch(name):
                raise ValueError(f"model.encoders: {name!r} cannot be the name of an export's folder")
            config["model"]["init_args"]["encoders"][name]["init_args"]["model"] = f"./{name}"
    kept = {key: facts[key] for key in ("stage_index", "total_step", "trained_pairs", "stages")}
    spec = {name: tower.spec for name, tower in model.encoders.items()}
    return {"format": _FORMAT, "mmalign": __version__, "config": config, **kept, "spec": spec}


def _without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """The same architecture, built without the weights that it started from: the export's own replace them.

    open_clip's towers keep the tag of theirs, because it decides preprocessing and activation, too.
    """
    model = copy.deepcopy(model)
    for encoder in model["init_args"]["encoders"].values():
        settings = encoder.get("init_args") or {}
        if settings.get("pretrained") is True:
            settings["pretrained"] = False
        if settings.get("weights") is not None:
            settings["weights"] = None
    return model


def is_export(path: Path) -> bool:
    return (path / _CONFIG).is_file() and (path / _WEIGHTS).is_file()


def load_export(directory: Path) -> tuple[Aligner, dict[str, Any]]:
    """The model in eval mode, and the facts that `load_model` gives for a checkpoint, as far as an export has them.

    Raises:
        ValueError: it is damaged or of another version, its configuration names what it may not (see
            `mmalign.training.trust`), or the installed packages prepare inputs otherwise than those that trained it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    from mmalign.training.config import build_part, check_part

    path = directory / _CONFIG
    facts = _read_facts(directory)
    try:
        check_part(facts["config"]["model"], Aligner, "model", trusted_only=True)
        config = _with_folders(facts["config"]["model"], directory)
        spec = facts["spec"]
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    model: Aligner = build_part(config, Aligner)
    found = {name: tower.spec for name, tower in model.encoders.items()}
    if _comparable(found) != _comparable(spec):
        raise ValueError(f"{path}: the installed packages prepare inputs otherwise: {found} here, {spec} there")
    try:
        load_model(model, directory / _WEIGHTS)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ValueError(f"{directory / _WEIGHTS}: not the weights of this configuration: {error}") from None
    return model.eval(), facts


def read_export(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All weights under the names that the Aligner gives them, and the facts; nothing is built.

    Raises:
        ValueError: it is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    facts = _read_facts(directory)
    try:
        with safe_open(directory / _WEIGHTS, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = {name: kept for name, kept in (file.metadata() or {}).items() if kept in weights}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{directory / _WEIGHTS}: not readable: {error}") from None
    return weights | {name: weights[kept] for name, kept in tied.items()}, facts


def _read_facts(directory: Path) -> dict[str, Any]:
    path = directory / _CONFIG
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']} is not known to mmalign {__version__}")
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return facts


def _with_folders(model: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Hugging Face towers read the folders of this export, and nothing else: neither other folders, nor the hub."""
    model = copy.deepcopy(model)
    for name, encoder in model["init_args"]["encoders"].items():
        if encoder["class_path"].rpartition(".")[2] in (TextHF.__name__, TextCausalHF.__name__):
            settings = encoder["init_args"]
            if settings["model"] != f"./{name}" or not _NAME.fullmatch(name) or settings.get("pretrained") is not False:
                raise ValueError(f"model.init_args.encoders.{name}: an export's tower is the folder ./{name}")
            settings["model"] = str(directory / name)
    return model


def _comparable(spec: dict[str, Any]) -> dict[str, Any]:
    """Without where a tokenizer lies, and as JSON gives it back."""
    return {
        name: {**tower, "preprocess": {key: v for key, v in tower["preprocess"].items() if key != "model"}}
        for name, tower in json.loads(json.dumps(spec)).items()
    }
