"""What the benchmarks train on: generated shards, and open_clip models with random weights."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards

_WORDS = [
    "red",
    "blue",
    "small",
    "large",
    "old",
    "house",
    "tree",
    "river",
    "boat",
    "bird",
    "cat",
    "dog",
    "near",
    "under",
]


def picture(generator: np.random.Generator, side: int, extension: str) -> bytes:
    """Smooth noise, which compresses about as a photograph does."""
    from PIL import Image

    small = generator.integers(0, 255, (max(2, side // 8), max(2, side // 8), 3), dtype=np.uint8)
    file = io.BytesIO()
    options: dict[str, Any] = {"format": "JPEG", "quality": 90} if extension == "jpg" else {"format": "PNG"}
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(file, **options)
    return file.getvalue()


def sound(generator: np.random.Generator, seconds: float) -> bytes:
    """A tone as FLAC at 16 kHz."""
    import soundfile

    time = np.arange(int(seconds * 16000)) / 16000
    tone = 0.1 * np.sin(2 * np.pi * generator.uniform(100, 4000) * time)
    file = io.BytesIO()
    soundfile.write(file, tone.astype(np.float32), 16000, format="FLAC")
    return file.getvalue()


def caption(generator: np.random.Generator) -> str:
    return " ".join(generator.choice(_WORDS, 8))


def samples(count: int, side: int, extension: str, sound_seconds: float = 0.0) -> Iterator[RawSample]:
    generator = np.random.default_rng(0)
    for number in range(count):
        members = {extension: picture(generator, side, extension)}
        if sound_seconds:
            members["flac"] = sound(generator, sound_seconds)
        members["txt"] = f"{caption(generator)} {number}".encode()
        members["json"] = json.dumps({"group": f"g{number}"}).encode()
        yield RawSample(f"{number:06d}", members)


def write_pictures(
    folder: Path, count: int, side: int, extension: str = "png", sound_seconds: float = 0.0, per_shard: int = 500
) -> Path:
    """A shard directory of pictures and captions (and sounds), split "train"."""
    write_shards(folder, "train", samples(count, side, extension, sound_seconds), per_shard)
    build_index(folder)
    return folder


def write_clip(
    folder: Path, width: int, layers: int, text_width: int, text_layers: int, context: int = 24, image: int = 64
) -> str:
    """A ViT with patches of 16 at `image` pixels and a text transformer, in open_clip's own format.

    Returns: its name for open_clip and mmalign alike.
    """
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    vision = {"image_size": image, "patch_size": 16, "layers": layers, "width": width, "head_width": 64}
    text = {
        "context_length": context, "vocab_size": 49408, "layers": text_layers, "width": text_width,
        "heads": text_width // 64,
    }  # fmt: skip
    config = {
        "model_cfg": {"embed_dim": text_width, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {
            "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest",
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    model = CLIP(embed_dim=text_width, vision_cfg=vision, text_cfg=text)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return clip_name(folder)


@dataclass(frozen=True)
class Shape:
    """The full size of a training: rows of a batch, pixels of a picture's side, width and layers of the ViT."""

    batch: int
    image: int
    width: int
    layers: int


def write_towers(folder: Path, shape: Shape, scale: float) -> str:
    """A ViT of that shape and a text tower of two thirds its width and half its layers; both small at a small scale."""
    width, layers = (shape.width, shape.layers) if scale >= 0.5 else (128, 2)
    return write_clip(folder, width, layers, width * 2 // 3 // 64 * 64, layers // 2, image=shape.image)


def clip_name(folder: Path) -> str:
    return f"local-dir:{folder}"
