"""A cache of features belongs to all that decides what a tower computes, also to what adds no parameter."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.data.config import ShardData
from mmalign.data.features import FeatureCache
from mmalign.data.index import build_index
from mmalign.data.precompute import open_or_build
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.encoders.audio_transformer import AudioTransformer
from mmalign.encoders.base import Axis, Encoder
from mmalign.encoders.image import ImagePreprocess, ImageTimm
from mmalign.encoders.text_bytes import TextBytes
from mmalign.encoders.text_hf import TextHF

SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}


class Scaled(Encoder):
    """A user's own tower; its function is no parameter, and `gain` neither."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.relu, *, gain: float = 1.0) -> None:
        super().__init__(ImagePreprocess(size=4), 5, Axis("patches", 1, 1))
        self.function, self.gain = function, gain
        self.linear = nn.Linear(48, 5)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens.mean_pooled(self.gain * self.function(self.linear(values.flatten(1)))[:, None])


@pytest.fixture
def data(tmp_path: Path) -> ShardData:
    rng = np.random.default_rng(0)
    samples = []
    for i in range(3):
        picture, sound = io.BytesIO(), io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(picture, "PNG")
        soundfile.write(sound, 0.1 * rng.standard_normal(4000), 16000, format="FLAC")
        members = {"png": picture.getvalue(), "flac": sound.getvalue(), "txt": f"the text {i}".encode()}
        samples.append(RawSample(f"s{i}", members))
    write_shards(tmp_path / "made", "train", samples)
    build_index(tmp_path / "made")
    return ShardData(str(tmp_path / "made"))


def caches(data: ShardData, first: Encoder, second: Encoder) -> list[FeatureCache]:
    second.load_state_dict(first.state_dict())
    return [open_or_build(data, first.preprocess.kind, tower, progress=False) for tower in (first, second)]


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (TextBytes, {"heads": 2, "width": 16, "depth": 1}, {"heads": 4, "width": 16, "depth": 1}),
        (AudioTransformer, {"heads": 2, "width": 16, "depth": 1}, {"heads": 4, "width": 16, "depth": 1}),
        (
            ImageTimm,
            {"model": "resnet10t", "size": 64, "options": {"global_pool": "avg", **SMALL}},
            {"model": "resnet10t", "size": 64, "options": {"global_pool": "max", **SMALL}},
        ),
        (Scaled, {"gain": 1.0}, {"gain": 2.0}),
        (Scaled, {"function": torch.tanh}, {"function": torch.sigmoid}),
    ],
)
def test_settings_without_a_parameter_have_caches_of_their_own(
    data: ShardData, make: type[Encoder], one: dict, other: dict
) -> None:
    first, second = caches(data, make(**one), make(**other))
    assert first.digest != second.digest
    assert not torch.allclose(first.row(0, 0), second.row(0, 0))
    again, repeated = caches(data, make(**one), make(**one))
    assert again.digest == repeated.digest


def test_a_default_that_is_given_changes_nothing(data: ShardData) -> None:
    first, second = caches(data, Scaled(), Scaled(torch.relu, gain=1.0))
    assert first.digest == second.digest


def test_the_configuration_in_a_hugging_face_folder(data: ShardData, hf_folder: Callable[[str], Path]) -> None:
    folder = hf_folder("bert")
    gelu = TextHF(str(folder), max_length=16)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    first, second = caches(data, gelu, TextHF(str(folder), max_length=16))
    assert first.digest != second.digest
    assert not torch.allclose(first.row(0, 0), second.row(0, 0))


def test_a_tower_whose_code_has_changed_is_refused(data: ShardData, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = Scaled()
    cache = open_or_build(data, "image", tower, progress=False)
    assert open_or_build(data, "image", tower, progress=False).digest == cache.digest
    monkeypatch.setattr(Scaled, "forward", lambda self, values, mask=None: Tokens.mean_pooled(
        torch.tanh(self.linear(values.flatten(1)))[:, None]
    ))  # fmt: skip
    with pytest.raises(ValueError, match=rf"{re.escape(str(cache.directory))} does not hold what the image tower"):
        open_or_build(data, "image", tower, progress=False)
