"""The tidy table of metrics: one row per number. Matrix, plots, W&B and report are derived from it alone."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        run: name of the run.
        stage: name of the stage after which it was measured; "start" before the first.
        stage_index: 0 before the first stage, t after stage t.
        step: optimizer steps taken so far, over all stages.
        column: the column of the forgetting matrix that this row belongs to (the evaluator's name in the YAML).
        dataset, split: what it was measured on.
        direction: "image->text", "image->text[fr]" for captions in French, "text" for a measure of one tower.
        metric: "R@1", "mAP@10", "median_rank", "bits_per_byte", …
        value: NaN when it could not be measured; never 0 for that.
        higher_is_better: which way is up.
        main: whether this is the column's main score, the entry of the matrix R[t][j].
        emergent: whether the two modalities were never trained together up to now.
        ci_low, ci_high: 95 % interval; NaN without one.
        chance: expected value of a model that knows nothing; NaN where undefined.
        n_queries, n_gallery, n_missing: sizes; missing are the items that lack one of the modalities.
        seed: of the run.
        text_hash: SHA-256 of the fixed evaluation text, for language metrics.
    """

    run: str
    stage: str
    stage_index: int
    step: int
    column: str
    dataset: str
    split: str
    direction: str
    metric: str
    value: float
    higher_is_better: bool = True
    main: bool = False
    emergent: bool = False
    ci_low: float = math.nan
    ci_high: float = math.nan
    chance: float = math.nan
    n_queries: int = 0
    n_gallery: int = 0
    n_missing: int = 0
    seed: int = 0
    text_hash: str = ""


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file at once by these rows, one JSON object a line; strict JSON: NaN is written as null."""
    lines = []
    for row in rows:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}
        lines.append(json.dumps(values, ensure_ascii=False, allow_nan=False))
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_rows(path: Path) -> list[Row]:
    """Rows of a metrics.jsonl.

    Raises:
        ValueError: a line is no row; names file and line.
    """
    floats = {f.name for f in fields(Row) if f.type is float}
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):  # not splitlines: names may hold other signs that end a line in Unicode
            try:
                values: Any = json.loads(line)
                values = {k: math.nan if v is None and k in floats else v for k, v in values.items()}
                rows.append(Row(**values))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: not a row of metrics: {error}") from error
    return rows
