"""What the converters of other people's data sets share: items of one picture or recording with its captions."""

import hashlib
import io
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from mmalign.data.sample import RawSample
from mmalign.data.sources.accounting import Account
from mmalign.data.sources.base import Source, hashed_split, json_member, key_from
from mmalign.data.sources.near_duplicates import connected, plain_english
from mmalign.data.sources.pictures import PictureRefused, on_white
from mmalign.data.sources.recordings import RecordingRefused

_KEPT_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_READ_FORMATS = (*_KEPT_FORMATS, "GIF", "BMP", "TIFF")
_EXIF_ORIENTATION = 0x0112
_MAX_PICTURE_PIXELS = 50_000_000
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Item:
    """A picture or recording (a file, its bytes, or what fetches them), its captions in English, more for its json."""

    name: str
    media: Path | bytes | Callable[[], bytes]
    captions: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        if isinstance(self.media, bytes):
            return self.media
        return self.media.read_bytes() if isinstance(self.media, Path) else self.media()


class PairedSource(Source):
    """Yields one sample per usable item: `png|jpg|webp` or `flac`, `txt` (the first caption), `json` (all of them).

    Items without a caption, whose file is missing, or whose file cannot be read are left out and stand in the report.
    """

    def __init__(self) -> None:
        self._account = Account()
        self._digests: dict[str, str] = {}

    @abstractmethod
    def items(self, split: str) -> Iterator[Item]:
        """The items of a split in a fixed order; names are unique over all splits."""

    @abstractmethod
    def stored(self, item: Item) -> tuple[str, bytes]:
        """Extension and bytes of the item's member.

        Raises:
            PictureRefused, RecordingRefused: the message is the reason.
        """

    def samples(self, split: str) -> Iterator[RawSample]:
        self.check_split(split)
        for item in self.items(split):
            captions = list(dict.fromkeys(text for caption in item.captions if (text := " ".join(caption.split()))))
            if not captions:
                self._account.note("without a caption", item.name)
                continue
            try:
                extension, data = self.stored(item)
            except (PictureRefused, RecordingRefused) as refusal:
                self._account.note(str(refusal), item.name)
                continue
            except FileNotFoundError:
                self._account.note("file missing", item.name)
                continue
            self._digests[item.name] = hashlib.sha256(data).hexdigest()
            metadata = json_member({**item.metadata, "captions": {"en": captions}, "name": item.name})
            yield RawSample(
                key_from(item.name), {extension: data, "txt": captions[0].encode("utf-8"), "json": metadata}
            )

    def report(self) -> dict[str, Any]:
        return self._account.as_json()

    def contents_sha256(self) -> str:
        """Of the names and stored members of all items that were used; complete once every split has been drawn."""
        lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def divided(items: Iterable[Item], shares: dict[str, float], seed: int) -> dict[str, list[Item]]:
    """Items by split, for data sets that come without one; items that share a caption stay on one side."""
    by_name = {item.name: item for item in items}
    captions = {
        name: [plain for text in item.captions if (plain := plain_english(text))] for name, item in by_name.items()
    }
    roots = connected(captions)
    splits: dict[str, list[Item]] = {split: [] for split in shares}
    for name in sorted(by_name):
        splits[hashed_split(roots[name], shares, salt=str(seed))].append(by_name[name])
    return splits


def inside(root: Path, name: str) -> Path | None:
    """`root`/`name`, or None when the name leads out of it. Links in the folder are the user's own, and followed."""
    path = Path(os.path.abspath(root / name))
    return path if path.is_relative_to(os.path.abspath(root)) else None


def stored_picture(data: bytes, side: int) -> tuple[str, bytes]:
    """A picture of a bounded side: as it came where that is possible, else scaled down and stored as JPEG.

    Raises:
        PictureRefused: it is broken, of another format, or above 50 megapixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_READ_FORMATS) as image:
            if image.width * image.height > _MAX_PICTURE_PIXELS:
                raise PictureRefused(f"more than {_MAX_PICTURE_PIXELS} pixels")
            image.load()
            upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
            if upright and max(image.size) <= side and image.format in _KEPT_FORMATS:
                return _KEPT_FORMATS[image.format], data
            picture = on_white(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, PictureRefused):
            raise
        raise PictureRefused("broken picture, or no format that is read") from error
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    return "jpg", file.getvalue()
