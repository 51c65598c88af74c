"""Pictures as they are stored: on white, of a bounded side, as PNG; however many pixels the original has.

A picture of 600 megapixels would take gigabytes decoded. It is read in strips instead: PNG rows are filtered against
the row above, so a strip becomes a small PNG of its own whose first row is the last one of the strip before. Each strip
is put on white and averaged down before the next is read.
"""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops, ImageOps

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_STRIP_PIXELS = 2_000_000


class PictureRefused(ValueError):
    """The picture cannot be stored; the message is the reason, without the picture's name."""


class PngHeader(NamedTuple):
    """Width and height in pixels; the rest as the PNG specification names it."""

    width: int
    height: int
    bit_depth: int
    colour_type: int
    interlaced: bool


def read_header(path: Path) -> PngHeader:
    """The header of a PNG file, without decoding anything. Raises PictureRefused when it is none."""
    with open(path, "rb") as file:
        head = file.read(33)
    if len(head) < 33 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise PictureRefused("not a PNG picture")
    width, height, bit_depth, colour_type, _, _, interlace = struct.unpack(">IIBBBBB", head[16:29])
    return PngHeader(width, height, bit_depth, colour_type, bool(interlace))


def bounded_picture(path: Path, side: int, whole_pixels: int = 16_000_000) -> Image.Image:
    """A PNG picture in RGB, on white, its longer side at most `side` pixels; smaller ones keep their size.

    Memory stays below about 12 bytes × `whole_pixels`: larger pictures are read in strips.

    Raises:
        PictureRefused: broken, no PNG, or larger than `whole_pixels` in a layout that cannot be read in strips.
    """
    header = read_header(path)
    if header.width * header.height > whole_pixels:
        if header.interlaced or header.bit_depth != 8:
            if header.width * header.height > 4 * whole_pixels:
                raise PictureRefused(f"more than {4 * whole_pixels} pixels, interlaced or not of 8 bits")
        else:
            return _bounded(_reduced_by_strips(path, header, side), header.width, header.height, side)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is bounded above
            with Image.open(path, formats=["PNG"]) as image:
                return _bounded(on_white(image), header.width, header.height, side)
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureRefused(f"broken picture: {type(error).__name__}") from error


def on_white(image: Image.Image) -> Image.Image:
    """The picture in RGB; where it is transparent, white shines through."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def trimmed(image: Image.Image, side: int) -> Image.Image:
    """A picture without its white margins, its longer side at most `side` pixels.

    Raises:
        PictureRefused: there is nothing but white.
    """
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    if box is None:
        raise PictureRefused("nothing but white in it")
    return _bounded(image.crop(box), box[2] - box[0], box[3] - box[1], side)


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def mirror_free_hash(image: Image.Image) -> str:
    """One hash for a picture and its mirror image."""
    sides = (image, ImageOps.mirror(image))
    return min(hashlib.sha256(str(side.size).encode() + side.tobytes()).hexdigest() for side in sides)


def _bounded(image: Image.Image, width: int, height: int, side: int) -> Image.Image:
    """`image`, which stands for a picture of `width` × `height`, at the size that bounds the longer one to `side`."""
    scale = side / max(width, height)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _reduced_by_strips(path: Path, header: PngHeader, side: int) -> Image.Image:
    """The whole picture on white, averaged over squares so that it is still a few times larger than `side`."""
    factor = max(1, max(header.width, header.height) // (4 * side))
    reduced = Image.new("RGB", (-(-header.width // factor), -(-header.height // factor)))
    top = 0
    for strip in _strips(path, header, factor):
        small = on_white(strip).reduce(factor)
        reduced.paste(small, (0, top))
        top += small.height
    return reduced


def _strips(path: Path, header: PngHeader, multiple: int) -> Iterator[Image.Image]:
    """The rows from top to bottom; the height of every strip but the last is a multiple of `multiple`."""
    row_bytes = 1 + header.width * _CHANNELS[header.colour_type]
    rows_each = max(1, _STRIP_PIXELS // header.width // multiple) * multiple
    data = _Inflated(path)
    above = b""
    for start in range(0, header.height, rows_each):
        rows = min(rows_each, header.height - start)
        filtered = data.read(rows * row_bytes)
        image = _decode(header, data.ancillary, above + filtered, rows + bool(above))
        if above:
            image = image.crop((0, 1, header.width, rows + 1))
        last_row = image.crop((0, rows - 1, header.width, rows))
        above = b"\0" + last_row.tobytes()  # filter 0: these bytes are the row itself
        yield image


def _decode(header: PngHeader, ancillary: bytes, scanlines: bytes, rows: int) -> Image.Image:
    fields = struct.pack(">IIBBBBB", header.width, rows, 8, header.colour_type, 0, 0, 0)
    body = _chunk(b"IHDR", fields) + ancillary + _chunk(b"IDAT", zlib.compress(scanlines, 0)) + _chunk(b"IEND", b"")
    image = Image.open(io.BytesIO(_SIGNATURE + body), formats=["PNG"])
    image.load()
    return image


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class _Inflated:
    """The inflated scanlines of a PNG file, a piece at a time. `ancillary`: its palette and transparency chunks."""

    def __init__(self, path: Path) -> None:
        self.ancillary = b""
        self._pieces = self._idat(path)
        self._inflate = zlib.decompressobj()
        self._pending = next(self._pieces, b"")

    def _idat(self, path: Path) -> Iterator[bytes]:
        with open(path, "rb") as file:
            file.seek(len(_SIGNATURE))
            while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
                size = int.from_bytes(head[:4], "big")
                if head[4:] == b"IDAT":
                    while size > 0 and (piece := file.read(min(size, 1 << 16))):
                        size -= len(piece)
                        yield piece
                elif head[4:] in (b"PLTE", b"tRNS"):
                    self.ancillary += _chunk(head[4:], file.read(size))
                else:
                    file.seek(size, io.SEEK_CUR)
                file.seek(4, io.SEEK_CUR)

    def read(self, size: int) -> bytes:
        parts = []
        try:
            while size > 0:
                part = self._inflate.decompress(self._pending, size)
                self._pending = self._inflate.unconsumed_tail
                parts.append(part)
                size -= len(part)
                if not self._pending and not part:
                    self._pending = next(self._pieces, b"")
                    if not self._pending:
                        raise PictureRefused("broken picture: it ends early")
        except zlib.error as error:
            raise PictureRefused("broken picture: its pixels cannot be inflated") from error
        return b"".join(parts)
