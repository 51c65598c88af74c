"""A run directory, and the formats of the files in it.

Only `metrics.jsonl` and `config.yaml` are always there. Every other file may be missing: what reads it gets an empty
value, and the report leaves that section out. All text is UTF-8, all JSON is strict (a missing number is null).

    config.yaml        the full configuration, as it was resolved
    metrics.jsonl      the table of metrics, one row a line (mmalign.evaluation.table)
    run.json           {"name": str, "created": ISO date, "arm": str?, "seed": int, "command": str?,
                        "versions": {package: version}, "machine": {property: text or number},
                        "stages": [{"name": str, "steps": int, "batch_size": int?,
                                    "trainable": {component: [trained parameters, all parameters]}}]}
                       `arm` names what is compared (a retention method); runs of one arm differ in their seed
    train.csv          one line a logged step: step, stage, loss, loss/NAME, pairs/NAME, learning_rate/GROUP,
                       gradient_norm, samples_per_second, data_wait_share, seconds, …; empty where a step has none
    quarantine.jsonl   one unusable sample a line: {"shard", "key", "offset", "stage", "error", "modality"?}
    cost.json          [{"stage": str, "samples", "tokens", "flops", "seconds", "peak_memory_bytes", "bytes_stored", …},
                       …]: one entry a stage, numbers with the unit in the name
    examples/          retrieval examples: mmalign.report.examples
    diagnostics.json   {"modality_gap": {"stage": str?, "points": {modality: [[x, y], …]},
                        "explained_variance": [first, second]?, "gaps": {"image-text": distance}?}}: the first two
                       principal components of embeddings, and the distance between the modalities' means
    sweep/ALPHA.jsonl  rows of the table for the weights interpolated by ALPHA ("0.50.jsonl") between those before and
                       after the last stage: 0 is before, 1 is after (WiSE-FT)
"""

import csv
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

from mmalign.evaluation.table import Row, read_rows
from mmalign.report.examples import Example, read_examples
from mmalign.training.yaml_config import load_yaml


def finite(value: Any) -> bool:
    """Whether this is a number that can be shown: no text, no None, no NaN, no infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Run:
    """One run directory. Files are read when they are first asked for.

    Raises:
        FileNotFoundError: the directory, or the `metrics.jsonl` in it, is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        if not (self.directory / "metrics.jsonl").is_file():
            raise FileNotFoundError(f"{self.directory} is no run directory: it has no metrics.jsonl")

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.directory.resolve().name)

    @property
    def arm(self) -> str:
        return str(self.info.get("arm") or self.name)

    @property
    def seed(self) -> int:
        if finite(self.info.get("seed")):
            return int(self.info["seed"])
        return self.rows[0].seed if self.rows else 0

    @property
    def label(self) -> str:
        """How a table or a plot of several runs names this one."""
        return f"{self.arm} · seed {self.seed}" if self.info.get("arm") else self.name

    @cached_property
    def rows(self) -> list[Row]:
        return read_rows(self.directory / "metrics.jsonl")

    @cached_property
    def last_rows(self) -> list[Row]:
        """The rows of the last moment of evaluation, with which a run ends."""
        last = max((row.stage_index for row in self.rows), default=0)
        return [row for row in self.rows if row.stage_index == last]

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.directory / "config.yaml"
        return load_yaml(path) if path.is_file() else {}

    @cached_property
    def info(self) -> dict[str, Any]:
        return self._mapping("run.json")

    @cached_property
    def stages(self) -> list[dict[str, Any]]:
        return [stage for stage in self.info.get("stages") or [] if isinstance(stage, dict)]

    @cached_property
    def cost(self) -> dict[str, dict[str, float]]:
        """Costs by stage, in order, then "total" of all stages; empty without a cost.json."""
        loaded = self._json("cost.json")
        entries = [entry for entry in loaded if isinstance(entry, dict)] if isinstance(loaded, list) else []
        stages = {
            str(entry.get("stage", index)): {name: float(value) for name, value in entry.items() if finite(value)}
            for index, entry in enumerate(entries, 1)
        }
        return stages | {"total": _total(list(stages.values()))} if stages else {}

    @cached_property
    def modality_gap(self) -> dict[str, Any]:
        gap = self._mapping("diagnostics.json").get("modality_gap")
        return gap if isinstance(gap, dict) and isinstance(gap.get("points"), dict) else {}

    @cached_property
    def quarantine(self) -> list[dict[str, Any]]:
        path = self.directory / "quarantine.jsonl"
        if not path.is_file():
            return []
        records = [_parsed(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        return [record for record in records if isinstance(record, dict)]

    @cached_property
    def train(self) -> list[dict[str, str]]:
        """Lines of train.csv; without the last one, if the process died while writing it."""
        path = self.directory / "train.csv"
        if not path.is_file():
            return []
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return [line for line in csv.DictReader(file) if None not in line and None not in line.values()]

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one column of train.csv, where it has a finite value."""
        points = [(_number(line.get("step")), _number(line.get(name))) for line in self.train]
        kept = [(step, value) for step, value in points if math.isfinite(step) and math.isfinite(value)]
        return [step for step, _ in kept], [value for _, value in kept]

    @cached_property
    def examples(self) -> list[Example]:
        return read_examples(self.directory)

    @cached_property
    def sweep(self) -> dict[float, list[Row]]:
        """Rows by the alpha of the interpolated weights, ascending."""
        paths = {_number(path.stem): path for path in (self.directory / "sweep").glob("*.jsonl")}
        return {alpha: read_rows(paths[alpha]) for alpha in sorted(paths) if math.isfinite(alpha)}

    def _json(self, name: str) -> Any:
        path = self.directory / name
        return _parsed(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None

    def _mapping(self, name: str) -> dict[str, Any]:
        loaded = self._json(name)
        return loaded if isinstance(loaded, dict) else {}


RATES = {
    "samples_per_second": "loop_seconds",
    "tokens_per_second": "loop_seconds",
    "data_wait_share": "loop_seconds",
    "utilisation": "step_seconds",
}
"""Each with the time that it is a mean over."""


def _total(costs: list[dict[str, float]]) -> dict[str, float]:
    """Sums; of rates the mean over their time; of memory the peak; of what is stored the last value."""
    total: dict[str, float] = {}
    for cost in costs:
        for name, value in cost.items():
            if name.startswith("peak_"):
                total[name] = max(total.get(name, value), value)
            elif name in RATES:
                times = [each.get(RATES[name], 0.0) for each in costs]
                if sum(times):
                    total[name] = total.get(name, 0.0) + value * cost.get(RATES[name], 0.0) / sum(times)
            else:
                total[name] = value if name == "bytes_stored" else total.get(name, 0.0) + value
    return total


def _parsed(text: str) -> Any:
    # A side file that was cut off by a crash must not cost the report of the rest.
    try:
        return json.loads(text)
    except ValueError:
        return None


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan
