"""Decoding gives the right values within the limits, and runs no code."""

import gzip
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mmalign.data.check import check_sample
from mmalign.data.decode import EXTENSIONS, decode
from mmalign.data.faults import Limits, SampleError
from mmalign.data.sample import RawSample

LIMITS = Limits()


def png(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def test_pictures_are_rgb_on_the_background() -> None:
    colours = Image.new("RGBA", (2, 1))
    colours.putpixel((0, 0), (10, 20, 30, 255))
    for background in ((255, 255, 255), (0, 0, 0)):
        shown = decode("image", "png", png(colours), LIMITS, background=background)
        assert (shown.mode, shown.getpixel((0, 0)), shown.getpixel((1, 0))) == ("RGB", (10, 20, 30), background)
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    shown = decode("image", "PNG", png(palette, transparency=0), LIMITS)
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 0))) == ((255, 255, 255), (9, 9, 9))
    grey = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    assert [decode("image", "png", png(grey), LIMITS).getpixel((x, 0))[0] for x in range(3)] == [0, 1, 255]


def test_a_jpeg_is_decoded_no_larger_than_needed() -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((1024, 768)).convert("RGB").save(file, "JPEG")
    whole = decode("image", "jpg", file.getvalue(), LIMITS)
    assert whole.size == (1024, 768)
    reduced = decode("image", "jpg", file.getvalue(), LIMITS, size=64)
    assert reduced.size == (256, 192)  # 128 of the shorter side would do, 96 would not
    small = [np.asarray(p.resize((64, 64), Image.Resampling.BICUBIC), dtype=float) for p in (whole, reduced)]
    assert np.abs(small[0] - small[1]).max() <= 2


def test_recordings_are_mono_float32() -> None:
    import soundfile

    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    file = io.BytesIO()
    soundfile.write(file, stereo, 8000, format="WAV", subtype="FLOAT")
    waveform, rate_hz = decode("audio", "wav", file.getvalue(), LIMITS)
    assert (rate_hz, waveform.dtype, waveform.shape) == (8000, np.float32, (100,))
    np.testing.assert_allclose(waveform, 0.125)


def test_texts_and_arrays() -> None:
    assert decode("text", "txt", "\ufeffé\n".encode(), LIMITS) == "é\n"
    assert decode("text", "captions[fr]#0", b"un", LIMITS) == "un"
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(3, 2)), np.ones(3, bool)):
        value = decode("array", "npy", npy(array), LIMITS)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, array)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "flac", "ogg", "wav", "mp3", "npy"])
def test_every_truncation_is_noticed(
    extension: str, make_picture: Callable[..., bytes], make_recording: Callable[..., bytes]
) -> None:
    if extension in EXTENSIONS["image"]:
        kind, data = "image", make_picture(0, {"jpg": "JPEG"}.get(extension, extension.upper()))
    elif extension == "npy":
        kind, data = "array", npy(np.ones((5, 3)))
    else:
        kind, data = "audio", make_recording(0, extension.upper(), 4000)
    decode(kind, extension, data, LIMITS)
    cuts = [*range(0, len(data), max(1, len(data) // 50)), *range(len(data) - 20, len(data))]
    for cut in cuts:
        with pytest.raises(SampleError):
            decode(kind, extension, data[:cut], LIMITS)


@pytest.mark.parametrize("extension", ["png", "flac", "ogg"])
def test_every_changed_byte_is_noticed(extension: str, make_picture: Any, make_recording: Any) -> None:
    """In formats with checksums; JPEG, WebP and MP3 have none (the index's checksum covers what it has seen)."""
    kind = "image" if extension == "png" else "audio"
    data = make_picture(0, "PNG") if kind == "image" else make_recording(0, extension.upper(), 4000)

    def value(changed: bytes) -> np.ndarray:
        decoded = decode(kind, extension, changed, LIMITS)
        return np.asarray(decoded[0] if kind == "audio" else decoded)

    expected = value(data)
    for at in range(0, len(data), max(1, len(data) // 200)):
        changed = bytearray(data)
        changed[at] ^= 0x55
        try:
            assert np.array_equal(value(bytes(changed)), expected)  # where nothing depends on it
        except SampleError:
            continue


def huge_npy() -> bytes:
    data = npy(np.ones((1, 1)))
    return data.replace(b"(1, 1)", b"(10000000000, 1)").replace(b" " * 10, b"", 1)


BAD = {
    "a PNG of zeros": ("image", "png", b"\0" * 100, "Error"),
    "a text as a picture": ("image", "jpg", b"hello", "Error"),
    "a GIF": ("image", "png", b"GIF89a\1\0\1\0\0\0\0;", "Error"),
    "an empty member": ("image", "png", b"", "empty"),
    "Latin-1": ("text", "txt", "é".encode("latin-1"), "UnicodeDecodeError"),
    "UTF-16": ("text", "txt", "text".encode("utf-16"), "UnicodeDecodeError"),
    "UTF-16 without a mark": ("text", "txt", "text".encode("utf-16-le"), "not in UTF-8"),
    "nothing but space": ("text", "txt", b" \n", "empty"),
    "a long text": ("text", "txt", b"a" * (LIMITS.max_text_bytes + 1), "limit"),
    "NaN in an array": ("array", "npy", npy(np.array([1.0, np.nan])), "NaN"),
    "an empty array": ("array", "npy", npy(np.zeros((0, 3))), "shape"),
    "an array of texts": ("array", "npy", npy(np.array(["a"])), "only numbers"),
    "an array that lies about its size": ("array", "npy", huge_npy(), "Error|limit"),
}


@pytest.mark.parametrize(("kind", "name", "data", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_used(kind: str, name: str, data: bytes, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        decode(kind, name, data, LIMITS)


@pytest.mark.parametrize(("kind", "name"), [("image", "png"), ("audio", "wav")])
def test_a_message_is_the_same_each_time(kind: str, name: str) -> None:
    with pytest.raises(SampleError, match=r"Error.* its bytes") as refused:
        decode(kind, name, b"hello", LIMITS)
    assert "0x" not in str(refused.value)


def test_recordings_that_cannot_be_used(make_recording: Callable[..., bytes]) -> None:
    with pytest.raises(SampleError, match="NaN"):
        decode("audio", "wav", written(np.array([0.0, np.nan]), format="WAV", subtype="FLOAT"), LIMITS)
    with pytest.raises(SampleError, match="no samples"):
        decode("audio", "wav", written(np.zeros(0), format="WAV", subtype="FLOAT"), LIMITS)
    flac = make_recording(0, "FLAC", 16_000)
    decode("audio", "flac", flac, Limits(max_audio_seconds=2.0))
    with pytest.raises(SampleError, match=r"limit is 1\.9 s"):
        decode("audio", "flac", flac, Limits(max_audio_seconds=1.9))
    with pytest.raises(SampleError, match="limit is 15999 values"):
        decode("audio", "flac", flac, Limits(max_audio_values=15_999))


def written(waveform: np.ndarray, **options: Any) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, waveform, 8000, **options)
    return file.getvalue()


def with_seek_points(flac: bytes, points: list[tuple[int, int]]) -> bytes:
    """A table of (frame, byte) behind a FLAC's first block."""
    table = b"".join(frame.to_bytes(8, "big") + byte.to_bytes(8, "big") + b"\x10\0" for frame, byte in points)
    return flac[:42] + b"\x03" + len(table).to_bytes(3, "big") + table + flac[42:]


NOISE = 0.1 * np.random.default_rng(0).standard_normal((40_000, 2))
EXCERPTS = {
    "FLAC": ("flac", written(NOISE, format="FLAC")),
    "FLAC of 24 bits": ("flac", written(NOISE, format="FLAC", subtype="PCM_24")),
    "FLAC with wrong seek points": ("flac", with_seek_points(written(NOISE, format="FLAC"), [(0, 0), (20_000, 10**7)])),
    "WAV": ("wav", written(NOISE, format="WAV")),
    "WAV of floats": ("wav", written(NOISE, format="WAV", subtype="FLOAT")),
    "WAV, extensible": ("wav", written(NOISE, format="WAVEX", subtype="PCM_24")),
    "GSM in WAV": ("wav", written(NOISE[:, 0], format="WAV", subtype="GSM610")),
    "Ogg Vorbis": ("ogg", written(NOISE, format="OGG")),
    "MP3": ("mp3", written(NOISE, format="MP3")),
}


@pytest.mark.parametrize(("extension", "data"), EXCERPTS.values(), ids=EXCERPTS)
def test_an_excerpt_equals_that_part_of_all(extension: str, data: bytes) -> None:
    whole, rate_hz = decode("audio", extension, data, LIMITS)
    asked = []
    for start in [0, 1, 4095, 4096, *range(5000, 39_000, 1700), len(whole) - 1000, len(whole) - 1]:
        stop = min(start + 1000, len(whole))

        def choose(frames: int, rate: int, part: tuple[int, int] = (start, stop)) -> tuple[int, int]:
            asked.append((frames, rate))
            return part

        part, rate = decode("audio", extension, data, LIMITS, excerpt=choose)
        np.testing.assert_array_equal(part, whole[start:stop])
        assert (part.dtype, rate, asked) == (np.float32, rate_hz, [(len(whole), rate_hz)])
        asked.clear()


@pytest.mark.parametrize("name", ["FLAC", "FLAC of 24 bits", "WAV", "WAV of floats", "WAV, extensible"])
def test_only_the_excerpt_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    read: list[int] = []
    all_frames = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, frames, **options: read.append(frames) or all_frames(file, frames, **options),
    )
    extension, data = EXCERPTS[name]
    decode("audio", extension, data, LIMITS, excerpt=lambda frames, rate_hz: (30_000, 30_500))
    assert read == [500]


def test_limits_are_those_of_the_whole_recording() -> None:
    for extension, data in EXCERPTS.values():
        for limits in (Limits(max_audio_seconds=4.9), Limits(max_audio_values=39_999)):
            with pytest.raises(SampleError, match="limit is"):
                decode("audio", extension, data, limits, excerpt=lambda frames, rate_hz: (0, 10))


def test_damage_within_an_excerpt_is_noticed() -> None:
    flac = EXCERPTS["FLAC"][1]
    whole, _ = decode("audio", "flac", flac, LIMITS)
    for at in range(0, len(flac), len(flac) // 100):
        changed = bytearray(flac)
        changed[at] ^= 0x55
        for damaged in (bytes(changed), flac[:at]):
            for start in (0, 19_000, 39_000):
                try:
                    part, _ = decode("audio", "flac", damaged, LIMITS, excerpt=lambda *_, s=start: (s, s + 1000))
                except SampleError:
                    continue
                np.testing.assert_array_equal(part, whole[start : start + 1000])
    with pytest.raises(SampleError, match=r"truncated|Error"):
        decode("audio", "flac", flac[: len(flac) // 2], LIMITS, excerpt=lambda *_: (39_000, 40_000))
    check = RawSample("a", {"flac": flac[: len(flac) // 2]})
    decode("audio", "flac", check.members["flac"], LIMITS, excerpt=lambda *_: (0, 1000))
    with pytest.raises(SampleError):
        check_sample(check, LIMITS)


def test_the_pixel_limit_comes_from_the_header() -> None:
    data = bytearray(png(Image.new("L", (8, 8))))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SampleError, match=r"limit|exceeds"):
            decode("image", "png", bytes(data), LIMITS)
        data[16:24] = (10_000).to_bytes(4, "big") * 2  # between PIL's warning and its error
        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
        with pytest.raises(SampleError, match="10000 × 10000 pixels, the limit is"):
            decode("image", "png", bytes(data), LIMITS)


def test_a_text_chunk_that_unpacks_to_gigabytes() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "a" * 50_000_000, zip=True)
    with pytest.raises(SampleError):
        decode("image", "png", png(Image.new("L", (8, 8)), pnginfo=info), LIMITS)


class Canary:
    """Unpickling this makes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


PICKLED = [
    "pkl",
    "pickle",
    "pyd",
    "pth",
    "pt",
    "npy",
    "npz",
    "pkl.gz",
    "pyd.gz",
    "npy.gz",
    "pth.zst",
    "ten",
    "mp",
    "cbor",
]


@pytest.mark.parametrize("extension", PICKLED)
def test_no_pickle_is_opened(extension: str, tmp_path: Path) -> None:
    path = tmp_path / "canary"
    file = io.BytesIO()
    if extension in ("pth", "pt"):
        torch.save(Canary(path), file)
    elif extension == "npz":
        np.savez(file, a=np.array([Canary(path)], dtype=object), allow_pickle=True)
    elif extension.startswith("npy"):
        np.save(file, np.array([Canary(path)], dtype=object), allow_pickle=True)
    else:
        pickle.dump(Canary(path), file)
    data = gzip.compress(file.getvalue()) if extension.endswith(".gz") else file.getvalue()
    for kind in EXTENSIONS:
        with pytest.raises(SampleError):
            decode(kind, extension, data, LIMITS)
        # … nor under an extension that is known.
        with pytest.raises(SampleError):
            decode(kind, EXTENSIONS[kind][0], file.getvalue() + b"\xff", LIMITS)
    with pytest.raises(SampleError):
        check_sample(RawSample("a", {extension: data}), LIMITS)
    check_sample(RawSample("a", {"txt": b"text", "pkl": data}), LIMITS)
    assert not path.exists()
    if extension == "pkl":  # the canary is a real one
        pickle.loads(data)
        assert path.exists()
