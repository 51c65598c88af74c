"""Checkpoints: written atomically and durably, read without running code."""

import errno
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO


def save_atomically(content: Any, path: Path) -> None:
    """torch.save to a temporary file in the target folder, fsync, rename, fsync of the folder.

    A crash at any moment leaves either the old file or the new one under `path`, complete.

    Raises:
        OSError: the disk is full, or the folder cannot be written; names the path. The old file is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch's zip writer hides a full disk in a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = "the disk is full" if getattr(error, "errno", None) == errno.ENOSPC else str(error)
        raise OSError(f"{path}: the checkpoint could not be written ({reason}); the one before it is intact") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint, on the CPU.

    `weights_only=True` is passed explicitly: without it, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD would let a file run code.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no checkpoint of mmalign, is damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch advises at length to turn weights_only off; what it found stands behind that
        found = re.search(r"WeightsUnpickler error:\s*(.*?)(?: by default|\. Please|\n|$)", str(error))
        reason = found[1] if found else str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: not a readable checkpoint (only tensors and plain values are read): {reason}"
        ) from error
    if not isinstance(content, dict) or "mmalign" not in content:
        raise ValueError(f"{path}: not a checkpoint of mmalign")
    return content


def _check_archive(path: Path) -> None:
    """torch does not look at the checksums of the zip archive that a checkpoint is.

    Raises:
        ValueError: the file is empty, truncated, changed, or of another kind.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: not a checkpoint: the file is empty")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a checkpoint, or a truncated one")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # whatever a changed header leads to
        raise ValueError(f"{path}: a damaged checkpoint: {error}") from error
    if damaged is not None:
        raise ValueError(f"{path}: a damaged checkpoint: the checksum of {damaged} is wrong")


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's hook for the two functions above."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save_atomically(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


_NAME = re.compile(r"stage-(\d+)(?:-step-(\d+))?\.ckpt")


class CheckpointFolder:
    """RUN/checkpoints: `stage-00.ckpt` (the start), `stage-01-step-00000500.ckpt` (within), `stage-01.ckpt` (the end).

    Args:
        directory: the folder; it need not exist.
        keep: how many checkpoints of the current stage stay.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = max(1, keep)

    def end_of(self, stage_index: int) -> Path:
        return self.directory / f"stage-{stage_index:02d}.ckpt"

    def within(self, stage_index: int, stage_step: int) -> Path:
        return self.directory / f"stage-{stage_index:02d}-step-{stage_step:08d}.ckpt"

    def _found(self) -> list[tuple[int, int | None, Path]]:
        found = []
        for path in sorted(self.directory.glob("stage-*.ckpt")):
            if match := _NAME.fullmatch(path.name):
                found.append((int(match[1]), None if match[2] is None else int(match[2]), path))
        return found

    def last_end(self) -> int | None:
        """Index of the last stage that ended; 0 when only the start is there; None for an empty folder."""
        return max((stage for stage, step, _ in self._found() if step is None), default=None)

    def last_within(self, stage_index: int) -> Path | None:
        steps = [(step, path) for stage, step, path in self._found() if stage == stage_index and step is not None]
        return max(steps)[1] if steps else None

    def latest(self) -> Path:
        """The newest state of the run.

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        end = self.last_end()
        if end is None:
            raise FileNotFoundError(f"{self.directory}: no checkpoint of mmalign here")
        return self.last_within(end + 1) or self.end_of(end)

    def position(self) -> tuple[int, int] | None:
        """(stage index, steps done in it) of the newest state; None for an empty folder."""
        end = self.last_end()
        if end is None:
            return None
        within = self.last_within(end + 1)
        return (end + 1, int(_NAME.fullmatch(within.name)[2])) if within else (end + 1, 0)  # type: ignore[index]

    def prune(self, stage_index: int) -> None:
        """Keep the newest `keep` of this stage's checkpoints, and none of the stages before."""
        within = sorted((stage, step, path) for stage, step, path in self._found() if step is not None)
        current = [path for stage, _, path in within if stage == stage_index]
        for path in current[: -self.keep] + [path for stage, _, path in within if stage < stage_index]:
            path.unlink(missing_ok=True)
        for orphan in self.directory.glob(".*.tmp"):
            orphan.unlink(missing_ok=True)
