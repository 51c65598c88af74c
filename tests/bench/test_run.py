"""From processes to rows, with sides whose figures are known."""

import os
import sys
from pathlib import Path

import pytest

from mmalign.bench.base import Ceilings, Settings
from mmalign.bench.run import SideFailed, describe, run_benchmark, run_side

HERE = Path(__file__).parent
CEILINGS = Ceilings(1e11, 1e11, 1e9, 1e10)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The worker processes find `sides`, and so does this one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(HERE))
    yield
    sys.modules.pop("sides", None)


def test_rows_of_a_benchmark(monkeypatch):
    import sides

    monkeypatch.setattr(sides.Known, "pairs", 2)
    rows = {row.quantity: row for row in run_benchmark("sides:Known", Settings(), CEILINGS)}
    time = rows["time"]
    assert (time.ratio_median, time.ratio_min, time.ratio_max, time.pairs) == (0.25, 0.25, 0.25, 2)
    assert (time.holds, time.mmalign_median, time.peer_median) == (True, 1.0, 4.0)
    assert rows["rate"].ratio_median == 4
    assert rows["rate"].holds
    assert rows["difference"].ratio_median == pytest.approx(5e-4)
    assert not rows["difference"].holds
    for name, word in (("time against the absent", "no_such_module_anywhere is not installed"),
                       ("time against the broken", "this side breaks")):  # fmt: skip
        assert rows[name].ratio_median is None
        assert not rows[name].holds
        assert word in rows[name].note
        assert "NOT MEASURED" in describe(rows[name])


def test_only_the_work_counts_as_memory(tmp_path):
    """Within a tenth: the kernel takes mapped library pages away, and counts roughly on many processors."""
    sample = run_side("sides:Allocates", "one", Settings(), tmp_path)
    assert sample.measures["bytes"] == pytest.approx(128 * 2**20, abs=12 * 2**20)


def test_a_side_that_fails_says_why(tmp_path):
    with pytest.raises(SideFailed, match="prepared"):
        run_side("sides:Known", "mmalign", Settings(), tmp_path)


def test_one_real_benchmark_from_end_to_end(tmp_path, monkeypatch, capsys):
    import json

    from mmalign.bench.mel import MelAgainstLibrosa
    from mmalign.cli import main

    monkeypatch.setattr(MelAgainstLibrosa, "pairs", 1)
    out = tmp_path / "results" / "benchmarks.json"
    assert main(["bench", "log-mel", "--threads", "1", "--scale", "0.05", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert [row["quantity"] for row in content["rows"]] == [q.label for q in MelAgainstLibrosa.quantities]
    assert (content["threads"], content["scale"]) == (1, 0.05)
    assert "log-mel" in capsys.readouterr().out
    assert main(["bench", "log-mel", "--threads", "2", "--scale", "0.05", "--out", str(out)]) == 2
    assert "threads" in capsys.readouterr().err
