"""Small shards of real pictures, recordings and texts."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.data.index import build_index
from mmalign.encoders.audio import AudioPreprocess
from mmalign.encoders.base import Preprocess
from mmalign.encoders.image import ImagePreprocess
from mmalign.encoders.text_bytes import BytePreprocess

Members = dict[str, bytes]
MakeTar = Callable[[Path, Iterable[tuple[str, Members]]], Path]


def picture(number: int, form: str = "PNG", side: int = 24) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def recording(number: int, form: str = "FLAC", frames: int = 400, rate_hz: int = 8000) -> bytes:
    import soundfile

    waveform = 0.1 * np.random.default_rng(number).standard_normal(frames)
    file = io.BytesIO()
    soundfile.write(file, waveform, rate_hz, format=form)
    return file.getvalue()


def sample(number: int) -> tuple[str, Members]:
    members = {
        "png": picture(number),
        "flac": recording(number),
        "txt": f"text number {number}".encode(),
        "json": json.dumps({"captions": {"en": [f"one {number}", f"two {number}"], "fr": [f"un {number}"]}}).encode(),
    }
    return f"{number:06d}", members


def write_tar(path: Path, samples: Iterable[tuple[str, Members]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, data in members.items():
                header = tarfile.TarInfo(f"{key}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


@pytest.fixture
def make_tar() -> MakeTar:
    return write_tar


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture
def make_recording() -> Callable[..., bytes]:
    return recording


@pytest.fixture
def make_sample() -> Callable[[int], tuple[str, Members]]:
    return sample


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 samples in two tars, indexed. Never written to: tests that damage something copy it."""
    directory = tmp_path_factory.mktemp("shards")
    write_tar(directory / "train-000000.tar", map(sample, range(10)))
    write_tar(directory / "train-000001.tar", map(sample, range(10, 20)))
    build_index(directory)
    return directory


@pytest.fixture(scope="session")
def preprocess() -> dict[str, Preprocess]:
    return {
        "image": ImagePreprocess(size=8, scale_min=0.5, flip=True),
        "audio": AudioPreprocess(sample_rate_hz=8000, max_seconds=0.02, gain_db=3.0),
        "text": BytePreprocess(max_length=32),
    }
