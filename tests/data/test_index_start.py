"""A stream starts without holding anything for each sample of its data set."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "index_start.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    """Three million samples: four bytes for each of them would already be 12 MiB, a Python list of them 24."""
    write_directory = runpy.run_path(str(SCRIPT))["write_directory"]
    found = {}
    for samples in (10_000, 3_000_000):
        directory = tmp_path / str(samples)
        directory.mkdir()
        write_directory(directory, samples)
        command = [sys.executable, str(SCRIPT), "--measure", str(directory)]
        found[samples] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found[3_000_000]["own"] - found[10_000]["own"] < 8
