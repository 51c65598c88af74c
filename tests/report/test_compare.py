import csv
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mmalign.evaluation.table import read_rows, write_rows
from mmalign.report.compare import compare, tradeoffs, write_comparison
from mmalign.report.matrix import new_columns, old_columns, run_matrix
from mmalign.report.readme import readme_table, stale_tables, update_readme
from mmalign.report.run import Run


@pytest.fixture
def runs(run_maker: Callable[..., Path], tmp_path: Path) -> list[Path]:
    return [run_maker(tmp_path / f"{arm}-{seed}", arm, seed) for arm in ("naive", "replay") for seed in (0, 1, 2)]


def main_scores(run: Path, column: str) -> list[float]:
    rows = sorted(read_rows(run / "metrics.jsonl"), key=lambda row: row.stage_index)
    return [row.value for row in rows if row.main and row.column == column]


def test_means_and_deviations_are_those_of_the_rows(runs: list[Path]) -> None:
    comparison = compare([Run(path) for path in runs])
    assert list(comparison.arms) == ["naive", "replay"]
    for arm, members in (("naive", runs[:3]), ("replay", runs[3:])):
        last = [main_scores(run, "scenes image-text")[-1] for run in members]
        found = comparison.get(arm, "last/scenes image-text")
        assert (found.mean, found.std, found.n_seeds) == (statistics.fmean(last), statistics.stdev(last), 3)
        bits = [main_scores(run, "language") for run in members]
        lost = comparison.get(arm, "forgetting/language")
        assert lost.mean == pytest.approx(statistics.fmean(b[2] - min(b[:2]) for b in bits))
        new = [main_scores(run, "scenes audio-text")[-1] for run in members]
        assert comparison.get(arm, "new_task").mean == pytest.approx(statistics.fmean(new))
    assert comparison.get("replay", "retention_percent").mean > comparison.get("naive", "retention_percent").mean
    assert comparison.get("naive", "cost/samples").mean == 2 * 57600


def test_old_and_new_columns(runs: list[Path]) -> None:
    run = Run(runs[0])
    matrix = run_matrix(run)
    assert new_columns(matrix) == ["scenes audio-text"]
    # a pair that was never trained and stood at chance had nothing to lose
    assert old_columns(run.rows, matrix) == ["scenes image-text", "language", "grammar"]


@pytest.mark.parametrize(("read", "since"), [(None, 2), (["image", "text"], 2), (["audio", "text"], 1)])
def test_a_second_data_set_of_the_same_pair_is_new(runs: list[Path], read: list[str] | None, since: int) -> None:
    """Both columns are image->text; the configuration says that the second stage brought the data of one of them.

    Only where it reads the pair, though: with the sounds of these data the column is as old as its pair.
    """
    run = Run(runs[0])
    rows = [row for row in run.rows if row.column in ("scenes image-text", "language")]
    twin = [replace(row, column="stamps") for row in rows if row.column == "scenes image-text"]
    write_rows(runs[0] / "metrics.jsonl", [*rows, *twin])
    columns = {"scenes image-text": "data/scenes", "stamps": "data/stamps"}
    config = {
        "stages": {
            "image-text": {"data": {"a": {"shards": "data/scenes"}}},
            "audio-text": {"data": {"b": {"shards": "data/stamps/", "modalities": read and dict.fromkeys(read, "x")}}},
        },
        "evaluation": {name: {"init_args": {"data": {"shards": path}}} for name, path in columns.items()},
    }
    (runs[0] / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    matrix = run_matrix(Run(runs[0]))
    assert dict(zip(matrix.columns, matrix.trained_at, strict=True)) == {
        "scenes image-text": 1, "language": 0, "stamps": since,
    }  # fmt: skip


def test_the_alpha_sweep_is_a_curve(runs: list[Path]) -> None:
    points = tradeoffs(compare([Run(path) for path in runs]))
    assert [point.label for point in points if not point.curve] == ["naive", "replay"]
    swept = [point for point in points if point.curve]
    assert [point.label for point in swept] == ["α=0", "α=0.25", "α=0.5", "α=0.75", "α=1"]
    assert [p.new_task for p in swept] == sorted(p.new_task for p in swept)
    assert [p.retention for p in swept] == sorted((p.retention for p in swept), reverse=True)


def test_shipped_results(runs: list[Path], tmp_path: Path) -> None:
    results = tmp_path / "results" / "x.json"
    write_comparison(runs, tmp_path / "out", results, "mmalign compare --config configs/x.yaml")
    content = json.loads(results.read_text())
    assert content["command"] == "mmalign compare --config configs/x.yaml"
    assert content["seeds"] == [0, 1, 2]
    assert content["machine"] == "Example CPU, 2 cores"
    assert len(content["rows"]) == 6 * 3 * 5
    assert {tuple(row) for row in content["rows"]} == {("arm", "seed", "column", "stage", "value", "higher_is_better")}
    assert {tuple(entry) for entry in content["summary"]} == {("arm", "metric", "mean", "std", "n_seeds")}
    holes = [row for row in content["rows"] if row["value"] is None]
    assert {(row["arm"], row["column"], row["stage"]) for row in holes} == {("naive", "scenes audio-text", "start")}
    with open(tmp_path / "out" / "comparison.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(content["summary"])
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == content


def test_every_direction_and_metric_at_the_end_is_summarised(runs: list[Path]) -> None:
    naive = [run for run in map(Run, runs) if run.arm == "naive"]
    last = [row for row in naive[0].rows if row.stage_index == 2 and "[" not in row.direction]
    assert last
    for row in last:
        same = [
            other.value
            for run in naive
            for other in run.rows
            if (other.column, other.stage_index, other.direction, other.metric)
            == (row.column, 2, row.direction, row.metric)
        ]
        found = compare([Run(path) for path in runs]).get("naive", f"last/{row.column}/{row.direction}/{row.metric}")
        assert found.mean == pytest.approx(sum(same) / len(same))


def test_one_seed_has_no_deviation(runs: list[Path]) -> None:
    found = compare([Run(runs[0])]).get("naive", "last/language")
    assert math.isnan(found.std)
    assert found.n_seeds == 1


def test_the_same_seed_twice_is_refused(runs: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"same seed.*needs another arm"):
        compare([Run(runs[0]), Run(runs[0])])


def test_different_experiments_are_not_averaged_as_seeds(runs: list[Path]) -> None:
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    same = config | {"name": "other", "runtime": {"threads": 1}, "logging": {"mode": "disabled"}}
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(same))
    assert compare([Run(path) for path in runs]).get("naive", "last/language").n_seeds == 3
    config["model"]["dim"] = 64
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"naive-0 and .*naive-1 are no seeds .* differ in model\.dim\. Leave"):
        compare([Run(path) for path in runs])


def test_readme_follows_the_results(runs: list[Path], tmp_path: Path) -> None:
    write_comparison(runs, tmp_path, tmp_path / "x.json", "mmalign compare")
    readme = tmp_path / "README.md"
    readme.write_text("# a\n\n<!-- results:x -->\nold\n<!-- /results:x -->\n\nb\n")
    assert stale_tables(readme, tmp_path) == ["x"]
    assert update_readme(readme, tmp_path) == ["x"]
    assert stale_tables(readme, tmp_path) == []
    assert update_readme(readme, tmp_path) == []
    text = readme.read_text()
    assert text.startswith("# a\n\n<!-- results:x -->\n| arm |")
    assert text.endswith("<!-- /results:x -->\n\nb\n")
    mean = json.loads((tmp_path / "x.json").read_text())["summary"][0]
    assert f"{mean['mean']:.3f} ± {mean['std']:.3f}" in text
    content = json.loads((tmp_path / "x.json").read_text())
    content["summary"][0]["mean"] += 0.1
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert stale_tables(readme, tmp_path) == ["x"]


def test_readme_errors_name_the_culprit(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:gone -->\n<!-- /results:gone -->\n")
    with pytest.raises(FileNotFoundError, match="gone"):
        stale_tables(readme, tmp_path)
    readme.write_text("<!-- results:open -->\n")
    with pytest.raises(ValueError, match="open"):
        stale_tables(readme, tmp_path)
    (tmp_path / "bad.json").write_text('{"summary": []}')
    with pytest.raises(ValueError, match=r"bad\.json"):
        readme_table(tmp_path / "bad.json")
