"""Every shipped experiment trains two steps of each stage, on small data of the same form."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmalign import assets
from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.evaluation.table import read_rows
from mmalign.training.config import check_config
from mmalign.training.run import train
from mmalign.training.yaml_config import load_yaml, read_config

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
REAL = "efficientnet-lite0"  # pretrained towers are assets
LARGE = "smollm2"  # one arm of it takes as long as all others together; the last one has the most in it
RUNS = [
    pytest.param(file, arm, id=f"{file.stem}-{arm}", marks=pytest.mark.assets if REAL in file.read_text() else ())
    for file in FILES
    for arm in [*(load_yaml(file).get("arms") or [None])][-1 if LARGE in file.read_text() else 0 :]
]
SMALL = {
    "mmalign.data.sources.scenes.Scenes": {"train": 48, "val": 8, "test": 24, "test_compositional": 8, "workers": 1}
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    before = Path.cwd()
    os.chdir(folder)
    sources = {directory: source for run in RUNS for directory, source in sources_of(*run.values).items()}
    for directory, source in sources.items():
        if source["class_path"].endswith((".TuxPaint", ".OpenClipart")):
            stamps(Path(directory))
    yield folder
    os.chdir(before)


def sources_of(file: Path, arm: str | None) -> dict:
    return read_config(file, arm=arm).get("sources", {})


def stamps(directory: Path) -> None:
    """Samples as the sources of Tux Paint and Open Clip Art write them: picture, captions by language, speech."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8), ("test", 12)):
        samples = []
        for i in range(count):
            picture, sound = io.BytesIO(), io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(picture, "png")
            soundfile.write(sound, generator.normal(0, 0.1, 8000), 16000, format="flac")
            captions = {code: [f"{code} thing {split} {i}"] for code in ("en", "fr", "de", "ru")}
            metadata = {"captions": captions, "group": f"{split}{i}", "category": ["animals", "food"][i % 2]}
            members = {"png": picture.getvalue(), "speech.fr.flac": sound.getvalue(), "txt": captions["en"][0].encode()}
            samples.append(RawSample(f"{split}{i}", members | {"json": json.dumps(metadata).encode()}))
        write_shards(directory, split, samples)
    build_index(directory)
    card = {"name": directory.name, "licence": "none", "provenance": {}, "splits": ["train", "val", "test"]}
    (directory / "card.json").write_text(json.dumps(card))  # built: the source is not asked


def shortened(file: Path, arm: str | None) -> dict:
    raw = read_config(file, arm=arm)
    overrides: dict = {"logging.mode": "disabled", "runtime.workers": 0, "runtime.threads": 1, "sweep": []}
    overrides |= {"runtime.progress_bar": False}
    for name in raw["stages"]:
        overrides |= {f"stages.{name}.steps": 2, f"stages.{name}.batch_size": 12}
        overrides |= {f"stages.{name}.optimization.warmup_steps": 0}
    for name, evaluator in raw["evaluation"].items():
        for key, path in (("limit", "data.limit"), ("pairs_per_phenomenon", "pairs_per_phenomenon")):
            if key in str(evaluator):
                overrides[f"evaluation.{name}.init_args.{path}"] = 2
    config = read_config(file, overrides, arm)
    for source in config.get("sources", {}).values():
        source["init_args"] = {**source.get("init_args", {}), **SMALL.get(source["class_path"], {})}
    return check_config(config)


@pytest.mark.parametrize(("file", "arm"), RUNS)
def test_two_steps(workplace, file, arm):
    config = shortened(file, arm)
    for name in ("efficientnet-lite0", "minilm", "smollm2-135m", "wordnet"):
        if name in file.read_text():
            assets.fetch(name)
    out = workplace / f"{file.stem}-{arm}"
    train(config, out)
    rows = read_rows(out / "metrics.jsonl")
    assert [row.stage for row in rows if row.column == rows[0].column and row.main] == ["start", *config["stages"]]
    assert (out / "report.html").stat().st_size > 10_000
