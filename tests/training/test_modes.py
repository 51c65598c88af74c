"""What is frozen computes as in evaluation while the rest trains."""

from pathlib import Path

import torch

from mmalign.encoders import TextBytes
from mmalign.model import Aligner
from mmalign.training.config import check_config
from mmalign.training.run import train
from mmalign.training.trainable import freeze_all_but
from mmalign.training.yaml_config import read_config

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
QUICK = {
    "stages.image_text.steps": 2,
    "stages.image_text.optimization.warmup_steps": 1,
    "stages.image_text.trainable": {"encoder.image": "none"},
    "stages.audio_text.steps": 2,
    "stages.audio_text.optimization.warmup_steps": 1,
    "stages.audio_text.trainable": {"encoder.text": 1, "encoder.image": "none"},
    "model.init_args.encoders.image.init_args": {
        "model": "resnet10t",
        "size": 32,
        "options": {"channels": [8, 8, 16, 16], "stem_width": 8, "drop_rate": 0.1},
    },
    "model.init_args.encoders.text.init_args.depth": 3,
    "runtime": {"workers": 0, "threads": 1, "progress_bar": False},
    "logging.mode": "disabled",
}


def test_frozen_parts_are_in_evaluation_mode_in_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modes, plain = [], Aligner.forward

    def watched(self, batch):
        if self.training:
            text = self.tower("text").layers()
            modes.append([self.tower("image").training, *(module.training for module in text[1:])])
            statistics.append({n: v.clone() for n, v in self.tower("image").state_dict().items() if "running" in n})
        return plain(self, batch)

    statistics: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(Aligner, "forward", watched)
    train(check_config(read_config(DEBUG, QUICK)), tmp_path / "run")
    assert modes == [[False, True, True, True]] * 2 + [[False, False, False, True]] * 2
    assert statistics[0]
    for later in statistics[1:]:
        for name, values in later.items():
            torch.testing.assert_close(values, statistics[0][name], rtol=0, atol=0)


def test_what_a_constructor_has_frozen_no_stage_trains():
    text = TextBytes(width=16, depth=2, heads=2, max_length=8)
    frozen = next(text.layers()[0].parameters()).requires_grad_(False)
    model = Aligner({"text": text}, dim=8)
    for trainable in ({}, {"encoder.text": "all"}, {"encoder.text": len(text.layers())}):
        freeze_all_but(model, trainable)
        assert [p is frozen for p in model.parameters() if not p.requires_grad] == [True]
