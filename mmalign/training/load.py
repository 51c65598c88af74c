"""A trained model out of a run, a checkpoint or an export."""

import warnings
from pathlib import Path
from typing import Any

from mmalign.export.folder import is_export, load_export
from mmalign.model import Aligner
from mmalign.training.checkpoints import CheckpointFolder, load_checkpoint
from mmalign.training.config import build_part, check_config


def load_model(run_or_checkpoint: Path) -> tuple[Aligner, dict[str, Any]]:
    """The model in eval mode, and the checkpoint's facts (configuration, stage, encoder specs).

    Args:
        run_or_checkpoint: a run's folder (its newest state; where that is within a stage of LoRA, whose additions are
            merged only when it ends, the end of the stage before, with a warning), a `.ckpt` file, or the folder of an
            export.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is no checkpoint of mmalign, it names classes that a checkpoint may not name (see
            `check_config`), it was saved within a stage of LoRA, or its weights do not fit its configuration.
    """
    path = run_or_checkpoint
    if is_export(path):
        return load_export(path)
    path, content = _newest(path) if path.is_dir() else (path, load_checkpoint(path))
    if _adapted(content):
        raise ValueError(f"{path}: within a stage of LoRA, whose additions are merged when it ends; take an end")
    facts = content["mmalign"]
    config = check_config(facts["config"], trusted_only=True)
    model: Aligner = build_part(config["model"], Aligner)
    weights = {
        key.removeprefix("model."): tensor for key, tensor in content["state_dict"].items() if key.startswith("model.")
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the configuration inside: {error}") from None
    return model.eval(), facts


def _newest(run: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run whose weights are those of its model."""
    folder = CheckpointFolder(run / "checkpoints", 1)
    path = folder.latest()
    content = load_checkpoint(path)
    if not _adapted(content):
        return path, content
    end = folder.end_of(folder.last_end() or 0)
    warnings.warn(f"{path} is within a stage of LoRA; {end}, the end of the one before, is loaded", stacklevel=3)
    return end, load_checkpoint(end)


def _adapted(content: dict[str, Any]) -> bool:
    return any(".lora_" in key for key in content["state_dict"])
