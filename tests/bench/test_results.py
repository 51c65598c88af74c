"""The file of results, and the table that the README makes of it."""

import json

import pytest

from mmalign.bench.base import Ceilings, Settings
from mmalign.bench.growth_plot import growth_figure
from mmalign.bench.ratios import Row
from mmalign.bench.results import open_results, put_rows, save
from mmalign.report.readme import stale_tables, update_readme

CEILINGS = Ceilings(1e11, 2e11, 1e9, 1e10)
ROWS = [
    Row("stream", "webdataset", "rate", 0.95, 0.9, 1.1, ">= 0.9", True, 5),
    Row("infonce", "a | peer", "time", 0.5, 0.45, 0.55, "<= 0.4", False, 5, roofline="no ratio below 0.45 is possible"),
    Row("log-mel", "librosa", "rate", None, None, None, ">= 5", False, note="librosa is not installed"),
]
GROWTH = [
    {"task": task, "title": "", "unit": "rows", "sizes": [1, 2, 4, 8], "seconds": [0.1, 0.2, 0.4, 0.8],
     "bytes": [0, 0, 2**20, 2**23], "time_exponent": 1.0, "memory_exponent": 1.2}
    for task in ("loss", "stream")
]  # fmt: skip


def filled(path):
    content = open_results(path, Settings(2))
    put_rows(content, ROWS, CEILINGS)
    save(path, content)
    return content


def test_rows_are_replaced_by_benchmark_and_sorted(tmp_path):
    path = tmp_path / "benchmarks.json"
    filled(path)
    content = open_results(path, Settings(2))
    assert [row["benchmark"] for row in content["rows"]] == ["infonce", "stream", "log-mel"]
    put_rows(content, [Row("stream", "webdataset", "rate", 1.0, 1.0, 1.0, ">= 0.9", True, 5)], CEILINGS)
    assert [row["ratio_median"] for row in content["rows"]] == [0.5, 1.0, None]


@pytest.mark.parametrize("settings", [Settings(1), Settings(2, 0.5)])
def test_figures_of_other_settings_are_not_mixed(tmp_path, settings):
    filled(tmp_path / "benchmarks.json")
    with pytest.raises(ValueError, match="cannot be mixed"):
        open_results(tmp_path / "benchmarks.json", settings)


def test_the_readme_follows(tmp_path):
    path, readme = tmp_path / "benchmarks.json", tmp_path / "README.md"
    content = filled(path)
    readme.write_text("<!-- results:benchmarks -->\n<!-- /results:benchmarks -->\n")
    assert update_readme(readme, tmp_path) == ["benchmarks"]
    assert stale_tables(readme, tmp_path) == []
    text = readme.read_text()
    assert "| infonce | time | a \\| peer | 0.500 (0.450 … 0.550) | &lt;= 0.4 | no |" in text
    assert "| log-mel | rate | librosa | – | >= 5 | not measured |" in text
    assert "- infonce, time: no ratio below 0.45 is possible." in text
    assert "- log-mel, rate: librosa is not installed." in text
    assert "growth.png" not in text
    content["growth"] = GROWTH
    path.write_text(json.dumps(content))
    assert stale_tables(readme, tmp_path) == ["benchmarks"]
    update_readme(readme, tmp_path)
    assert "| loss | 1, 2, 4, 8 rows | 1.00 | 1.20 |" in readme.read_text()
    assert "](configs/results/growth.png)" in readme.read_text()


def test_the_plot_names_every_part():
    figure = growth_figure(GROWTH)
    for axes in figure.axes:
        words = " ".join(text.get_text() for text in axes.texts)
        assert "loss" in words
        assert "stream" in words
