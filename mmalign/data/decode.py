"""Bytes of a member -> a value: the only place where data from outside is interpreted.

Only the extensions listed here are decoded, whatever a pattern picks; nothing is ever unpickled. Sizes are read from
headers and compared with the limits before memory is taken for the decoded value.
"""

import io
import re
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from mmalign.data.faults import Limits, SampleError

EXTENSIONS = {
    "image": ("png", "jpg", "jpeg", "webp"),
    "audio": ("flac", "wav", "ogg", "opus", "mp3"),
    "text": ("txt",),
    "array": ("npy",),
}
"""By kind: what is decoded at all."""

Colour = tuple[int, int, int]
Excerpt = Callable[[int, int], tuple[int, int]]
"""(frames, rate in hertz) of a recording -> the frames start … stop-1 that are wanted."""

WHITE: Colour = (255, 255, 255)
_BUFFER = re.compile(r"<_io\.BytesIO object at 0x[0-9a-fA-F]+>")
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
_AUDIO_FORMATS = ("FLAC", "WAV", "WAVEX", "OGG", "MP3")
_EXACT_SEEKING = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
_OGG_LAST_PAGE = 4
_MIRRORED_BYTES = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_PNG_SIGNATURE_BYTES = 8
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT")


def decode(
    kind: str,
    name: str,
    data: bytes,
    limits: Limits,
    size: int | None = None,
    background: Colour = WHITE,
    excerpt: Excerpt | None = None,
) -> Any:
    """One member's value.

    Args:
        kind: "image" -> a PIL picture in RGB; "audio" -> (float32 mono waveform [samples], rate in hertz); "text" -> a
            str; "array" -> a float32 array.
        name: the member's extension, or "captions[fr]#0".
        size: the side in pixels that a picture will be scaled to, where that is known.
        background: colour behind the transparent parts of a picture.
        excerpt: chooses the part of a recording that is returned; None is all of it.

    Raises:
        SampleError: the value cannot be had, or is beyond the limits.
    """
    extension = name.rpartition(".")[2].lower()
    if extension not in EXTENSIONS[kind] and not (kind == "text" and name.startswith("captions[")):
        raise SampleError(f"{name!r}: {extension!r} is not decoded as {kind}; only {', '.join(EXTENSIONS[kind])} are")
    if len(data) > limits.max_member_bytes:
        raise SampleError(f"{name!r}: {len(data)} bytes, the limit is {limits.max_member_bytes}")
    if not data:
        raise SampleError(f"{name!r} is empty")
    try:
        if kind == "image":
            return decode_image(data, limits, size, background)
        if kind == "audio":
            return decode_audio(data, limits, excerpt)
        return _DECODERS[kind](data, limits)
    except SampleError as error:
        raise SampleError(f"{name!r}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like at bytes that are not what they should be
        # PIL and soundfile name the buffer by its address in memory, another one each time
        told = _BUFFER.sub("its bytes", str(error))
        raise SampleError(f"{name!r}: {type(error).__name__}: {told}") from error


def decode_image(data: bytes, limits: Limits, size: int | None = None, background: Colour = WHITE) -> Image.Image:
    """A picture in RGB, on `background` where it is transparent.

    Where `size` is given, a JPEG is decoded at the smallest of its reduced scales (1/2, 1/4, 1/8) that leaves both
    sides at least twice that long, so that the scaling that follows still averages over pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
        picture: Image.Image = Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise SampleError(f"{width} × {height} pixels, the limit is {limits.max_pixels}")
    if size is not None and picture.format == "JPEG":
        picture.draft("RGB", (2 * size, 2 * size))
    picture.load()
    if picture.format == "PNG":
        _check_png(data)
    if picture.mode.startswith("I"):
        # Sixteen bits of grey; PIL's own conversion would clip them to eight.
        picture = Image.fromarray((np.asarray(picture, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        opaque = Image.new("RGB", picture.size, background)
        opaque.paste(picture, mask=picture.getchannel("A"))
        return opaque
    return picture.convert("RGB")


def _check_png(data: bytes) -> None:
    """Follow the chunks up to the closing one; compare the checksums of those that make up the picture.

    PIL leaves rows that it could not read black, and reads some damaged chunks as if they were whole.
    """
    position = _PNG_SIGNATURE_BYTES
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if kind == b"IEND":
            return
        end = position + 8 + length
        stated = int.from_bytes(data[end : end + 4], "big")
        if kind in _PNG_CRITICAL and zlib.crc32(data[position + 4 : end]) != stated:
            raise SampleError(f"damaged: a chunk {kind.decode()} at byte {position} differs from its checksum")
        position = end + 4
    raise SampleError("truncated: the closing chunk is missing")


def decode_audio(
    data: bytes, limits: Limits, excerpt: Excerpt | None = None
) -> tuple[Float32[np.ndarray, " samples"], int]:
    """(waveform, rate in hertz): the mean of the channels, in [-1, 1] where the file keeps to it.

    Of FLAC and of PCM in WAV, only the excerpt is read, so that damage elsewhere may go unnoticed. Ogg and MP3 are read
    whole: after seeking, their decoders give slightly different values.
    """
    import soundfile

    # A writer that could not go back leaves 2³²-1 as the length.
    if data[:4] == b"RIFF" and len(data) - 8 < int.from_bytes(data[4:8], "little") < 2**32 - 1:
        raise SampleError("truncated: shorter than its header says")
    if data[:4] == b"OggS":
        _check_ogg(data)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        if file.format not in _AUDIO_FORMATS:
            raise SampleError(f"the format {file.format} is not decoded")
        frames, channels, rate_hz = file.frames, file.channels, file.samplerate
        if frames <= 0:
            raise SampleError("no samples")
        if frames > limits.max_audio_seconds * rate_hz:
            raise SampleError(f"{frames / rate_hz:.0f} s of audio, the limit is {limits.max_audio_seconds} s")
        if frames * channels > limits.max_audio_values:
            raise SampleError(f"{frames} frames of {channels} channels, the limit is {limits.max_audio_values} values")
        start, stop = (0, frames) if excerpt is None else excerpt(frames, rate_hz)
        exact = file.format == "FLAC" or file.subtype in _EXACT_SEEKING
        if exact and stop - start < frames:
            waveform = _read_part(file, start, stop)
        else:
            waveform = file.read(frames, dtype="float32", always_2d=True)
            if len(waveform) < frames:
                raise SampleError(f"truncated: {len(waveform)} of {frames} frames")
            waveform = waveform[start:stop]
    if waveform is None:
        return decode_audio(data, limits)[0][start:stop], rate_hz
    mono = waveform[:, 0] if channels == 1 else waveform.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise SampleError("NaN or infinite values")
    return np.ascontiguousarray(mono), rate_hz


def _read_part(file: Any, start: int, stop: int) -> Float32[np.ndarray, "frames channels"] | None:
    """Frames start … stop-1; None where they cannot be had by seeking. Reading all of the file shows what is wrong.

    It may be only a FLAC's table of seek points, which is not needed for that.
    """
    import soundfile

    try:
        file.seek(start)
        part = file.read(stop - start, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    return part if len(part) == stop - start else None


def _check_ogg(data: bytes) -> None:
    """Follow an Ogg file's pages up to the one marked as the last, and compare their checksums.

    Decoders play a file that was cut as a shorter one, and pass over pages that were damaged.
    """
    position, flags = 0, 0
    while position + 27 <= len(data):
        if data[position : position + 4] != b"OggS":
            raise SampleError(f"damaged: no Ogg page at byte {position}")
        flags, segments = data[position + 5], data[position + 26]
        end = position + 27 + segments + sum(data[position + 27 : position + 27 + segments])
        stated = int.from_bytes(data[position + 22 : position + 26], "little")
        if end <= len(data) and _ogg_checksum(data[position:end]) != stated:
            raise SampleError(f"damaged: the Ogg page at byte {position} differs from its checksum")
        position = end
    if position != len(data) or not flags & _OGG_LAST_PAGE:
        raise SampleError("truncated: the last Ogg page is missing or incomplete")


def _ogg_checksum(page: bytes) -> int:
    """RFC 3533: CRC-32 over the page with its checksum set to zero, from zero, most significant bit first.

    zlib's runs the other way round, so the bits of each byte are mirrored, and those of the result.
    """
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED_BYTES)
    return int(f"{zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2)


def decode_text(data: bytes, limits: Limits) -> str:
    """A text in UTF-8, without a byte-order mark."""
    if len(data) > limits.max_text_bytes:
        raise SampleError(f"{len(data)} bytes of text, the limit is {limits.max_text_bytes}")
    text = data.decode("utf-8-sig")
    if "\0" in text:
        raise SampleError("a zero byte in the text: it is not in UTF-8")
    if not text.strip():
        raise SampleError("the text is empty")
    return text


def decode_array(data: bytes, limits: Limits) -> Float32[np.ndarray, "..."]:
    """A numeric `.npy` array, as float32."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise SampleError(f"version {version} of the format is not read")
    shape, fortran_order, dtype = readers[version](file)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise SampleError(f"an array of {dtype}; only numbers are read")
    count = 1
    for length in shape:
        count *= length
    if count <= 0 or count > limits.max_array_values:
        raise SampleError(f"an array of shape {shape}, the limit is {limits.max_array_values} values")
    body = data[file.tell() :]
    if len(body) != count * dtype.itemsize:
        raise SampleError(f"{len(body)} bytes of values, its header says {count * dtype.itemsize}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        values = np.frombuffer(body, dtype).reshape(shape, order="F" if fortran_order else "C").astype(np.float32)
    if not np.isfinite(values).all():
        raise SampleError("NaN or infinite values")
    return values


_DECODERS: dict[str, Callable[[bytes, Limits], Any]] = {
    "text": decode_text,
    "array": decode_array,
}
