"""The table of metrics: what was written is read again, and a line that is no row is named."""

import math
from pathlib import Path

import pytest

from mmalign.evaluation.table import Row, read_rows, write_rows


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x1e", "\r", "\n"])
def test_names_may_hold_any_sign(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "metrics.jsonl"
    interval = {"ci_low": 0.1, "ci_high": 0.9, "chance": 0.25}
    rows = [
        Row("r", "s", 1, 2, "c", "d", "test", f"{way}[fr{sign}]", "R@1", 0.5, **interval) for way in ("a->b", "b->a")
    ]
    write_rows(path, rows)
    assert read_rows(path) == rows


def test_no_number_is_null_and_no_row_is_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [Row("r", "s", 1, 2, "c", "d", "test", "image->text", "R@1", math.nan)])
    assert "NaN" not in path.read_text()
    assert math.isnan(read_rows(path)[0].value)
    write_rows(path, [])
    assert read_rows(path) == []


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [Row("r", "s", 1, 2, "c", "d", "test", "image->text", "R@1", 0.5)])
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a row"):
        read_rows(path)
