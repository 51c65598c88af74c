"""`mmalign demo`: the experiments that a newcomer runs first."""

import shutil
from pathlib import Path

import mmalign
from mmalign.training.compare import compare_runs, read_arms
from mmalign.training.yaml_config import ConfigError

CONFIGS = Path(mmalign.__file__).parents[1] / "configs"


def run_demo(data: str, out: Path | None) -> None:
    """Train, evaluate and report.

    "scenes" trains two arms, naive and replay, on generated data: OUT/report.html lays them side by side, and
    OUT/metrics.jsonl holds the rows of the replay arm. "tuxpaint" trains on real pictures, text and speech.

    Raises:
        ConfigError: the package is installed without its repository, where the configurations are.
    """
    file = CONFIGS / ("demo.yaml" if data == "scenes" else "tuxpaint.yaml")
    if not file.exists():
        raise ConfigError(f"{file.name}: the demo needs the repository: install it with pip install -e .")
    out = out or Path("runs") / ("demo" if data == "scenes" else "tuxpaint")
    overrides: dict[str, object] = {"seeds": [0]}
    arms = read_arms(file, overrides, None if data == "scenes" else ["aligned"])
    runs = arms.train_missing(out, jobs=1)
    compare_runs(runs, out, None)
    shutil.copyfile(runs[-1] / "metrics.jsonl", out / "metrics.jsonl")
    print(f"look at {out / 'report.html'}; the figures are in {out / 'metrics.jsonl'}")
