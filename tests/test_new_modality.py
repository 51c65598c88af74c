"""A new modality is one class of at most 15 lines and a YAML entry; nothing in the core changes."""

import inspect
import io

import numpy as np
import yaml
from torch import nn

from mmalign.batch import Tokens
from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.encoders import Axis, Encoder, SeriesPreprocess
from mmalign.evaluation.table import read_rows
from mmalign.training.config import check_config
from mmalign.training.run import train


class ImuEncoder(Encoder):
    """Six channels of an inertial sensor, 50 readings a second -> a recurrent network."""

    def __init__(self, channels: int = 6, width: int = 32) -> None:
        super().__init__(SeriesPreprocess(channels, hertz=50.0), width, Axis("frames", hertz=50.0))
        self.net = nn.GRU(channels, width, batch_first=True)

    def forward(self, values, mask=None):
        return Tokens.mean_pooled(self.net(values)[0], mask)


CONFIG = """
name: imu
model:
  class_path: mmalign.model.Aligner
  init_args:
    dim: 16
    encoders:
      imu: {class_path: PLACE.ImuEncoder}
      text: {class_path: mmalign.encoders.TextBytes, init_args: {width: 32, depth: 1, heads: 2, max_length: 32}}
losses:
  imu_text: {class_path: mmalign.losses.InfoNCE, init_args: {a: imu, b: text}}
stages:
  walk:
    data: {steps: {shards: DIR, modalities: {imu: imu.npy, text: txt}}}
    losses: {imu_text: 1.0}
    steps: 60
    batch_size: 16
    optimization: {learning_rate: 0.01}
evaluation:
  steps:
    class_path: mmalign.evaluation.Retrieval
    init_args:
      data: {shards: DIR, split: test, modalities: {imu: imu.npy, text: txt}}
      main_direction: imu->text
      languages: false
runtime: {workers: 0, progress_bar: false}
logging: {mode: disabled}
"""
MOVES = {"resting": 0.0, "walking": 1.0, "running": 2.0, "falling": -1.5}


def samples(split: str, count: int):
    generator = np.random.default_rng(len(split))
    for i in range(count):
        move, level = list(MOVES.items())[i % 4]
        series = generator.normal(level, 0.2, (int(generator.integers(20, 60)), 6)).astype(np.float32)
        stored = io.BytesIO()
        np.save(stored, series)
        members = {"imu.npy": stored.getvalue(), "txt": move.encode(), "json": f'{{"group": "{move}"}}'.encode()}
        yield RawSample(f"{split}{i:04}", members)


def test_a_new_modality_trains_and_evaluates(tmp_path):
    lines = [line for line in inspect.getsource(ImuEncoder).splitlines() if line.strip()]
    assert len(lines) <= 15
    shards = tmp_path / "shards"
    for split, count in (("train", 64), ("test", 8)):
        write_shards(shards, split, samples(split, count))
    build_index(shards)
    config = yaml.safe_load(CONFIG.replace("DIR", str(shards)).replace("PLACE", __name__))
    train(check_config(config), tmp_path / "run")
    scores = {
        (row.stage, row.direction): row.value for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row.main
    }
    assert scores["walk", "imu->text"] == 1.0
    assert scores["walk", "imu->text"] > scores["start", "imu->text"]
