"""Pictures in strips equal pictures read whole, in little memory; what cannot be read is refused, not crashed on."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.data.sources import pictures
from mmalign.data.sources.pictures import (
    PictureRefused,
    bounded_picture,
    mirror_free_hash,
    on_white,
    png_bytes,
    trimmed,
)


def _noise(mode: str, width: int, height: int) -> Image.Image:
    """Noise over a gradient: every filter of PNG gets used."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width)[None, :, None] + generator.integers(0, 56, (height, width, 4))
    rgba = Image.fromarray(ramp.astype(np.uint8), "RGBA")
    return rgba.quantize(40) if mode == "P" else rgba.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "LA", "L", "P"])
@pytest.mark.parametrize(("width", "height"), [(301, 97), (64, 333), (1, 700)])
def test_strips_give_what_the_whole_picture_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, width: int, height: int
) -> None:
    path, side = tmp_path / "x.png", 20
    image = _noise(mode, width, height)
    image.save(path, transparency=3) if mode == "P" else image.save(path)
    monkeypatch.setattr(pictures, "_STRIP_PIXELS", 2000)
    with Image.open(path) as opened:
        factor = max(1, max(width, height) // (4 * side))
        scale = side / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        plain = on_white(opened).reduce(factor).resize(size, Image.Resampling.LANCZOS)
    assert factor > 1
    assert bounded_picture(path, side, whole_pixels=500).tobytes() == plain.tobytes()


def test_a_picture_in_strips_looks_like_the_one_resized_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    _noise("RGBA", 400, 300).save(path)
    strips = np.asarray(bounded_picture(path, 40, whole_pixels=500), dtype=int)
    whole = np.asarray(bounded_picture(path, 40), dtype=int)
    assert strips.shape == whole.shape == (30, 40, 3)
    assert np.abs(strips - whole).max() <= 6


def test_transparency_becomes_white_and_small_pictures_keep_their_size(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.save(tmp_path / "x.png")
    found = bounded_picture(tmp_path / "x.png", 224)
    assert (found.mode, found.size) == ("RGB", (4, 2))
    assert [found.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (127, 127, 127), (255, 255, 255)]
    assert png_bytes(found) == png_bytes(Image.open(io.BytesIO(png_bytes(found))))


def test_margins_are_cut_off_and_empty_pictures_have_nothing_left() -> None:
    image = Image.new("RGB", (200, 100), "white")
    image.paste("black", (50, 20, 90, 60))
    assert trimmed(image, 20).size == (20, 20)
    assert trimmed(image, 400).tobytes() == Image.new("RGB", (40, 40), "black").tobytes()
    with pytest.raises(PictureRefused, match="nothing but white"):
        trimmed(Image.new("RGB", (20, 20), "white"), 20)


def test_a_mirror_image_has_the_same_hash_and_another_picture_has_not() -> None:
    image = _noise("RGB", 30, 20)
    assert mirror_free_hash(image) == mirror_free_hash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert mirror_free_hash(image) != mirror_free_hash(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


@pytest.mark.parametrize("whole_pixels", [500, 1_000_000])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "header"])
def test_broken_pictures_are_refused(tmp_path: Path, whole_pixels: int, damage: str) -> None:
    path = tmp_path / "x.png"
    _noise("RGB", 200, 200).save(path)
    data = path.read_bytes()
    broken = {
        "cut": data[: len(data) // 2],
        "garbage": data[:60] + b"\x55" * 500 + data[560:],
        "empty": b"",
        "header": data[8:],
    }
    path.write_bytes(broken[damage])
    with pytest.raises(PictureRefused):
        bounded_picture(path, 20, whole_pixels)


def test_huge_pictures_that_cannot_be_read_in_strips_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((60, 60), dtype=np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(PictureRefused, match="more than 800 pixels, interlaced or not of 8 bits"):
        bounded_picture(tmp_path / "x.png", 20, whole_pixels=200)
    assert bounded_picture(tmp_path / "x.png", 20, whole_pixels=1000).size == (20, 20)


@pytest.mark.slow
def test_a_picture_of_100_megapixels_takes_little_memory(tmp_path: Path) -> None:
    width = height = 10_000
    squeeze = zlib.compressobj(1)
    body = b"".join(squeeze.compress(b"\0" + bytes([row % 256]) * width * 4) for row in range(height)) + squeeze.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    path = tmp_path / "big.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    )
    # A fresh process, because memory's high-water mark never falls; its size before is what the imports take.
    code = """
import re, sys
from pathlib import Path
from mmalign.data.sources.pictures import bounded_picture

def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak_kb()
print(bounded_picture(Path(sys.argv[1]), 100).size, peak_kb() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    output = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    size, used_kb = output.rsplit(maxsplit=1)
    assert size == "(100, 100)"
    assert int(used_kb) < 100_000  # decoded it would be 400,000
