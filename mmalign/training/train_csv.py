"""train.csv: the training metrics of a run, exact, append-only, and right after a resume."""

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrainCsv(Logger):
    """Lightning's logger interface over one CSV file, one line a step.

    Numbers are written so that reading them gives the same float. A second call for the same step completes its line. A
    new name (a loss of a later stage) becomes a new column, empty in the lines before.

    Args:
        path: of the file.
        resume_step: None starts a new file; else lines of later steps are dropped, and an incomplete last one.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._names: list[str] = ["step"]
        self._last: dict[str, str] = {}
        self._last_offset = 0
        lines = self._kept(resume_step) if resume_step is not None and path.is_file() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite(lines)

    @property
    def name(self) -> str:
        return "train"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration stands in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add the line of a step, or complete the last one."""
        if step is None:
            raise ValueError("a line of train.csv needs its step")
        same = self._last.get("step") == str(step)
        line = (self._last if same else {"step": str(step)}) | {name: _text(value) for name, value in metrics.items()}
        line["step"] = str(step)
        new = [name for name in line if name not in self._names]
        if new:
            lines = self._kept(None)
            self._names += new
            self._rewrite(lines)
        with open(self.path, "r+b") as file:
            offset = self._last_offset if same else file.seek(0, os.SEEK_END)
            file.seek(offset)
            file.truncate()
            file.write(self._line(line))
        self._last, self._last_offset = line, offset

    def _kept(self, resume_step: int | None) -> list[dict[str, str]]:
        """The complete lines up to a step, all of them without one; takes over the file's columns."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        text = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(text, newline=""))
        names = list(reader.fieldnames or [])
        if names[:1] != ["step"]:
            return []
        self._names = names
        lines = []
        for line in reader:
            if None in line or None in line.values() or not line["step"].isdigit():
                continue
            if resume_step is None or int(line["step"]) <= resume_step:
                lines.append({name: value for name, value in line.items() if value})
        return lines

    def _rewrite(self, lines: list[dict[str, str]]) -> None:
        encoded = [self._line({name: name for name in self._names})] + [self._line(line) for line in lines]
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "wb") as file:
            file.writelines(encoded)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._last = lines[-1] if lines else {}
        self._last_offset = sum(map(len, encoded[:-1])) if lines else 0

    def _line(self, values: Mapping[str, str]) -> bytes:
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator="\n").writerow([values.get(name, "") for name in self._names])
        return buffer.getvalue().encode("utf-8")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.split())  # one line stays one line
    if isinstance(value, bool | int):
        return str(int(value))
    return repr(float(value))
