"""A trained model out of a run, a checkpoint or an export."""

from pathlib import Path
from typing import Any

from mmalign.export.folder import is_export, load_export
from mmalign.model import Aligner
from mmalign.training.checkpoints import CheckpointFolder, load_checkpoint
from mmalign.training.config import build_part, check_config


def load_model(run_or_checkpoint: Path) -> tuple[Aligner, dict[str, Any]]:
    """The model in eval mode, and the checkpoint's facts (configuration, stage, encoder specs).

    Args:
        run_or_checkpoint: a run's folder (its newest state), a `.ckpt` file, or the folder of an export.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is no checkpoint of mmalign, it names classes that a checkpoint may not name (see
            `check_config`), or its weights do not fit its configuration.
    """
    path = run_or_checkpoint
    if is_export(path):
        return load_export(path)
    if path.is_dir():
        path = CheckpointFolder(path / "checkpoints", 1).latest()
    content = load_checkpoint(path)
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
