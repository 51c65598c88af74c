"""A trained model out of a run, a checkpoint or an export."""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign.export.folder import is_export, load_export, read_export
from mmalign.model import Aligner
from mmalign.training.checkpoints import CheckpointFolder, load_checkpoint
from mmalign.training.config import build_part, check_part


def load_model(run_or_checkpoint: Path) -> tuple[Aligner, dict[str, Any]]:
    """The model in eval mode, and the checkpoint's facts (configuration, stage, encoder specs).

    Args:
        run_or_checkpoint: a run's folder (its newest state; where that is within a stage of LoRA, whose additions are
            merged only when it ends, the end of the stage before, with a warning), a `.ckpt` file, or the folder of an
            export.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is no checkpoint of mmalign, its model names classes that it may not name (see
            `mmalign.training.trust`), it was saved within a stage of LoRA, or its weights do not fit its configuration.
    """
    if is_export(run_or_checkpoint):
        return load_export(run_or_checkpoint)
    path, content = _read(run_or_checkpoint)
    facts = content["mmalign"]
    try:
        config = facts["config"]["model"]
    except (KeyError, TypeError):
        raise ValueError(f"{path}: has no configuration of a model") from None
    check_part(config, Aligner, "model", trusted_only=True)  # losses, data and methods are not needed, nor looked at
    model: Aligner = build_part(config, Aligner)
    weights = {
        key.removeprefix("model."): tensor for key, tensor in content["state_dict"].items() if key.startswith("model.")
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the configuration inside: {error}") from None
    return model.eval(), facts


def read_weights(run_or_checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, "model.…" and, but of an export, "losses.…", with the checkpoint's facts; nothing is built.

    Args:
        run_or_checkpoint: as for `load_model`.

    Raises:
        FileNotFoundError, ValueError: as `load_model`, as far as the files themselves are concerned.
    """
    if is_export(run_or_checkpoint):
        weights, facts = read_export(run_or_checkpoint)
        return {f"model.{name}": tensor for name, tensor in weights.items()}, facts
    _, content = _read(run_or_checkpoint)
    return content["state_dict"], content["mmalign"]


def find_weights(run_or_checkpoint: Path) -> None:
    """
    Raises:
        FileNotFoundError: there is no export, no checkpoint, and no run with one.
    """
    if is_export(run_or_checkpoint):
        return
    if run_or_checkpoint.is_dir():
        CheckpointFolder(run_or_checkpoint / "checkpoints", 1).latest()
    elif not run_or_checkpoint.exists():
        raise FileNotFoundError(f"{run_or_checkpoint}: there is no such run, checkpoint or export")


def _read(run_or_checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint, or the newest of a run, whose weights are those of its model."""
    path = run_or_checkpoint
    if not path.is_dir():
        content = load_checkpoint(path)
        if _adapted(content):
            raise ValueError(f"{path}: within a stage of LoRA, whose additions are merged when it ends; take an end")
        return path, content
    folder = CheckpointFolder(path / "checkpoints", 1)
    path = folder.latest()
    content = load_checkpoint(path)
    if not _adapted(content):
        return path, content
    end = folder.end_of(folder.last_end() or 0)
    warnings.warn(f"{path} is within a stage of LoRA; {end}, the end of the one before, is loaded", stacklevel=3)
    return end, load_checkpoint(end)


def _adapted(content: dict[str, Any]) -> bool:
    return any(".lora_" in key for key in content["state_dict"])
