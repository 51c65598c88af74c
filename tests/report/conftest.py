"""Made-up runs, complete with pictures and sounds: `python tests/report/conftest.py DIR` renders a page of them."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image, ImageDraw

from mmalign.evaluation.table import Row, write_rows
from mmalign.report.examples import Example, Item, Result, save_media, write_examples

EVIL = "<script>document.title='owned'</script>"
COLOURS = {"red": "#d7263d", "blue": "#1b6ca8", "green": "#2a9d5c", "yellow": "#f0b429", "purple": "#7a4ea3"}
SHAPES = ("circle", "square", "triangle")
STAGES = ("start", "image-text", "audio-text")
# column: (direction, metric, higher is better, chance, trained from stage, value at start, after 1, after 2 if naive)
COLUMNS = {
    "scenes image-text": ("image->text", "R@1", True, 0.002, 1, 0.002, 0.94, 0.55),
    "scenes audio-text": ("audio->text", "R@1", True, 0.002, 2, 0.002, 0.003, 0.62),
    "scenes image-audio": ("image->audio", "R@1", True, 0.002, 9, 0.002, 0.002, 0.11),
    "language": ("text", "bits_per_byte", False, math.nan, 0, 1.92, 2.31, 3.05),
    "grammar": ("text", "minimal_pairs", True, 0.5, 0, 0.81, 0.74, 0.58),
}
KEPT = {"naive": 0.0, "replay": 0.85, "ewc": 0.4, "frozen": 1.0, "joint": 0.97}


def rows(arm: str, seed: int) -> list[Row]:
    rng = np.random.default_rng([seed, *arm.encode()])
    found = []
    for index, stage in enumerate(STAGES):
        for column, (direction, metric, higher, chance, since, *values) in COLUMNS.items():
            value = values[index]
            if index == 2 and since < 2:
                value += KEPT[arm] * (values[1] - value)
            if index == 2 and since >= 2:
                value *= 0.55 if arm == "frozen" else 1 - 0.1 * KEPT[arm]
            value = abs(value + rng.normal(0, 0.006 if index else 0.0005))
            main = Row(
                arm, stage, index, (0, 300, 600)[index], column, "scenes", "test", direction, metric, value, higher,
                True, since > index, value - 0.03, value + 0.03, chance, 500, 500, 3, seed,
            )  # fmt: skip
            found.append(main)
            if "->" in direction:
                back = "->".join(reversed(direction.split("->")))
                found.append(replace(main, direction=back, main=False, value=0.97 * value))
                for metric_name, factor in (("R@5", 1.25), ("R@10", 1.32), ("mAP@10", 1.1)):
                    for d in (direction, back):
                        raised = min(1.0, factor * value)
                        extra = replace(main, direction=d, metric=metric_name, value=raised, main=False, chance=0.01)
                        found.append(replace(extra, ci_low=raised - 0.02, ci_high=min(1.0, raised + 0.02)))
    if arm == "naive":
        found = [
            replace(r, value=math.nan) if r.column == "scenes audio-text" and not r.stage_index else r for r in found
        ]
    return found


def picture(shape: str, colour: str, size: int = 96) -> bytes:
    image = Image.new("RGB", (size, size), "#f4f1ea")
    draw, box = ImageDraw.Draw(image), (18, 22, 76, 80)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(47, 18), (80, 78), (14, 78)], fill=COLOURS[colour])
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def tone(pitch_hz: float) -> bytes:
    time = np.arange(16000) / 16000
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * pitch_hz * time) * np.exp(-3 * time), 16000, format="FLAC")
    return file.getvalue()


def examples(directory: Path) -> list[Example]:
    rng = np.random.default_rng(5)
    items = []
    for number, (shape, colour) in enumerate((s, c) for s in SHAPES for c in COLOURS):
        key = f"scenes/{number:04d}"
        text = EVIL if number == 1 else f"a {colour} {shape} hums in the upper left, then falls silent"
        image = save_media(directory, key, "png", picture(shape, colour))
        items.append(Item(key, text, image, save_media(directory, key, "flac", tone(220 + 60 * number))))
    found = []
    for column, (direction, *_) in list(COLUMNS.items())[:3]:
        for rank in (1, 1, 4, 37):
            chosen = [items[i] for i in rng.permutation(len(items))[:5]]
            results = [Result(item, 0.82 - 0.07 * place, place == rank - 1) for place, item in enumerate(chosen)]
            found.append(Example(column, direction, chosen[0], rank, results, STAGES[-1]))
    return found


def make_run(directory: Path, arm: str = "naive", seed: int = 0, side_files: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "metrics.jsonl", rows(arm, seed))
    encoders = {"image": {"class_path": "mmalign.encoders.image.ImageEncoder", "init_args": {"name": "resnet18"}}}
    config = {"name": f"forgetting {arm}", "seed": seed, "model": {"dim": 128, "encoders": encoders}}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    if not side_files:
        return directory
    rng = np.random.default_rng(seed)
    write_examples(directory, examples(directory))
    parts = {
        "encoder.image": 1_900_000,
        "encoder.audio": 1_200_000,
        "encoder.text": 800_000,
        "projection.image": 65_000,
    }
    frozen = ("encoder.audio", "encoder.text") if arm == "frozen" else ()
    trained = {name: [0 if name in frozen else count, count] for name, count in parts.items()}
    stages = [{"name": name, "steps": 300, "batch_size": 192, "trainable": trained} for name in STAGES[1:]]
    info = {
        "name": f"forgetting/{arm}/seed-{seed}", "arm": arm, "seed": seed, "created": "2026-05-11T09:30:00+00:00",
        "versions": {"mmalign": "0.1.0", "torch": "2.15.0", "lightning": "2.6.6", "python": "3.12.4"},
        "machine": {"processor": "Example CPU", "cores": 2, "gpus": [], "system": "Linux"}, "stages": stages,
    }  # fmt: skip
    (directory / "run.json").write_text(json.dumps(info))
    kept = int(4e6 * KEPT[arm])
    slower = 110.0 * (1 + KEPT[arm] / 9)
    cost = [
        {"stage": name, "samples": 57600, "tokens": 1_100_000 * i, "flops": 3.1e14 * i, "seconds": slower * i,
         "step_seconds": 100.0 * i, "loop_seconds": 105.0 * i, "data_wait_share": 0.05 * i,
         "samples_per_second": 600.0 / i, "utilisation": 0.6 / i, "energy_joules": 7e3,
         "peak_memory_bytes": 2.1e9, "bytes_stored": kept, "price": 0.0}
        for i, name in enumerate(STAGES[1:], 1)
    ]  # fmt: skip
    (directory / "cost.json").write_text(json.dumps(cost))
    with open(directory / "train.csv", "w") as file:
        file.write("step,stage,loss,loss/image_text,loss/audio_text,learning_rate/encoder,learning_rate/projection,"
                   "gradient_norm,samples_per_second,data_wait_share,logit_scale/image_text\n")  # fmt: skip
        for step in range(1, 601, 3):
            second = step > 300
            base = 5.2 * math.exp(-(step % 300) / 90) + 0.4 + rng.normal(0, 0.1)
            image, audio = (f"{base / 2:.4f}", f"{base / 2:.4f}") if second else (f"{base:.4f}", "")
            rate = 1e-3 * math.sin(math.pi * (step % 300) / 300) + 1e-5
            wait = abs(rng.normal(0.04, 0.01))
            file.write(f"{step},{STAGES[1 + second]},{base:.4f},{image},{audio},{rate:.6f},{3 * rate:.6f},"
                       f"{abs(2 + rng.normal(0, 0.4)):.3f},{510 + rng.normal(0, 20):.1f},{wait:.4f},"
                       f"{10 + step / 60:.3f}\n")  # fmt: skip
    centres = {"image": (0.4, 0.1), "text": (-0.35, 0.2), "audio": (-0.1, -0.45)}
    points = {name: rng.normal(centre, 0.22, (150, 2)).round(4).tolist() for name, centre in centres.items()}
    gap = {"stage": STAGES[-1], "points": points, "explained_variance": [0.31, 0.17],
           "gaps": {"image-text": 0.76, "audio-text": 0.7, "audio-image": 0.74}}  # fmt: skip
    (directory / "diagnostics.json").write_text(json.dumps({"modality_gap": gap}))
    errors = ["truncated PNG", "truncated PNG", "audio of zero length"]
    records = [
        {"shard": "train-000001.tar", "key": f"x{i}{EVIL}", "offset": 512 * i, "stage": STAGES[1], "error": error}
        for i, error in enumerate(errors)
    ]
    (directory / "quarantine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if arm == "replay":
        (directory / "sweep").mkdir()
        for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
            changed = [replace(r, value=_between(r, alpha)) for r in rows("naive", seed) if r.stage_index == 2]
            write_rows(directory / "sweep" / f"{alpha:.2f}.jsonl", changed)
    return directory


def _between(row: Row, alpha: float) -> float:
    before = COLUMNS[row.column][6]
    return before + (row.value - before) * (alpha**1.7 if COLUMNS[row.column][4] < 2 else 1 - (1 - alpha) ** 1.7)


@pytest.fixture(scope="session")
def run_maker() -> Callable[..., Path]:
    return make_run


if __name__ == "__main__":
    import sys

    from mmalign.report.commands import report

    root = Path(sys.argv[1])
    every = [make_run(root / arm / f"seed-{seed}", arm, seed) for arm in KEPT for seed in range(3)]
    print(report(every[:1], root / "one.html"), report(every, root / "many.html"))
