"""Open Clip Art: drawings with title and tags, as people on the web gave them.

A picture is `FOLDER/NAME.png`; title, tags and artist stand in the RDF metadata of the drawing `FOLDER/NAME.svg`.

Rules, in this order (each is counted in the report with the names it struck or changed):
- left out: pictures that are links to, or copies of, an earlier one; without a drawing; whose drawing is no well-formed
  XML or declares entities;
- tags: `hash(0x…)` and other leavings of software, numbers, addresses, artists' names, tags that only sort the library
  ("unsorted", "icons", "theme", …) and words of more than 20 letters are removed; underscores become spaces;
- titles: entities and Windows characters are mended; addresses, the artist's name, "Clipart by … -", suffixes of
  collections, file extensions and counters are removed; titles like file names are split into words; "bw" is spelt out;
- a title that three or more pictures share, most of whose files are named otherwise, names a collection ("Various
  Cliparts") and is not used unless it is one of the picture's tags. Theme icons with such a title are left out; for the
  others the file's name is used, failing that the tags;
- a flag or a map (by its tags) whose title does not say so has the word added: "Senegal flag";
- artists who title in Italian or French, and drawings whose metadata name another language than English: the title goes
  into that language's captions, and the English caption is the list of tags;
- white margins (many are drawings on an empty page) are cut off; pictures with nothing else are left out;
- left out: pictures for which this yields no caption; of pictures with the same caption, those after the first
  `max_per_caption` (1,375 are many-pointed stars); broken pictures; pictures with the same pixels as an earlier one;
- pictures stay on one side of the split when they share, directly or through others, the caption apart from colours and
  numbers, the pixels up to mirroring, or the coarse outline (a 64-bit difference hash).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from mmalign import assets
from mmalign.assets.hashing import entry_sha256, tree_files, tree_sha256
from mmalign.data.sample import RawSample
from mmalign.data.sources import openclipart_text as text
from mmalign.data.sources.accounting import Account
from mmalign.data.sources.base import Source, hashed_split, json_member, key_from
from mmalign.data.sources.near_duplicates import connected, plain_english
from mmalign.data.sources.pictures import (
    PictureRefused,
    bounded_picture,
    mirror_free_hash,
    png_bytes,
    read_header,
    trimmed,
)


@dataclass
class _Picture:
    """`name`: the path below the folder, without extension. `captions` by language, English first."""

    name: str
    artist: str
    captions: dict[str, str]
    tags: list[str]
    data: bytes = b""
    pixels: str = ""
    outline: str = ""
    original_size: tuple[int, int] = (0, 0)


class OpenClipart(Source):
    """Pictures (`png`) with a caption (`txt`), their tags (`tags.txt`, separated by commas) and the rest in the json.

    Args:
        pictures: a folder of PNG files; None takes the asset `openclipart-png` and fetches it if need be.
        drawings: a folder of SVG files of the same names; None takes the asset `openclipart-svg` likewise.
        side: longest side of a stored picture, in pixels.
        max_per_caption: at most so many pictures with the same caption.
        val_share: about this share of the pictures is for validation.
        test_share: about this share of the pictures is for testing.
        seed: another one gives other splits.
    """

    name = "openclipart"
    licence = "CC-PDDC"
    description = (
        "Drawings of the Open Clip Art Library with the titles and tags that their artists gave them, cleaned. Real "
        "web noise remains: some titles are not English, vague, or jokes."
    )

    def __init__(
        self,
        pictures: Path | None = None,
        drawings: Path | None = None,
        side: int = 224,
        max_per_caption: int = 8,
        val_share: float = 0.05,
        test_share: float = 0.15,
        seed: int = 0,
    ) -> None:
        if (pictures is None) != (drawings is None):
            raise ValueError("give both pictures and drawings, or neither: they belong together")
        if side < 1 or max_per_caption < 1:
            raise ValueError(f"side is {side} and max_per_caption {max_per_caption}: both must be at least 1")
        if val_share < 0 or test_share < 0 or val_share + test_share >= 1:
            raise ValueError(f"val_share {val_share} and test_share {test_share} must leave something for training")
        self.pictures = pictures
        self.drawings = drawings
        self.side = side
        self.max_per_caption = max_per_caption
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed
        self._account = Account()

    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    def samples(self, split: str) -> Iterator[RawSample]:
        self.check_split(split)
        for picture in self._pictures:
            if self._split_of[picture.name] == split:
                yield self._sample(picture)

    def provenance(self) -> dict[str, Any]:
        if self.pictures is None or self.drawings is None:
            names = ("openclipart-png", "openclipart-svg")
            for name in names:
                assets.fetch(name)
            return {name: assets.provenance(name) for name in names}
        folders = {"pictures": self.pictures, "drawings": self.drawings}
        hashes = {
            role: {path.as_posix(): entry_sha256(folder / path) for path in tree_files(folder)}
            for role, folder in folders.items()
        }
        return {role: {"folder": folders[role].name, "tree_sha256": tree_sha256(hashes[role])} for role in folders}

    def report(self) -> dict[str, Any]:
        return {
            "pictures_found": len(self._files),
            "pictures_kept": len(self._pictures),
            "near_duplicate_groups": len(set(self._side_of.values())),
            "rules": self._account.as_json(),
        }

    @cached_property
    def _folders(self) -> tuple[Path, Path]:
        pictures = self.pictures or assets.fetch("openclipart-png")
        drawings = self.drawings or assets.fetch("openclipart-svg")
        for folder in (pictures, drawings):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder} is no folder")
        return pictures, drawings

    @cached_property
    def _files(self) -> list[str]:
        """Names of all pictures, sorted; links and copies come after what they repeat."""
        folder = self._folders[0]
        return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png"))

    @cached_property
    def _pictures(self) -> list[_Picture]:
        described = self._described()
        collections = self._collections(described)
        captioned = []
        for name, description in described.items():
            if picture := self._captioned(name, description, collections):
                captioned.append(picture)
        kept = self._rendered(self._capped(captioned))
        if not kept:
            raise ValueError(f"{self._folders[0]} holds no picture that could be captioned")
        return kept

    def _described(self) -> dict[str, text.Description]:
        """The metadata of every picture that is no link or copy of another and has readable ones."""
        pictures, drawings = self._folders
        seen: dict[str, str] = {}
        described = {}
        for name in self._files:
            path = pictures / f"{name}.png"
            if path.is_symlink() and path.resolve().is_relative_to(pictures.resolve()):
                self._account.note("picture left out: a link to another", name)
                continue
            first = seen.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), name)
            if first != name:
                self._account.note("picture left out: a copy of another", f"{name} = {first}")
                continue
            drawing = drawings / f"{name}.svg"
            if not drawing.is_file():
                self._account.note("picture left out: there is no drawing with its title", name)
                continue
            try:
                described[name] = text.read_description(drawing)
            except text.DrawingRefused as reason:
                self._account.note(f"picture left out: {reason}", name)
        return described

    @staticmethod
    def _collections(described: dict[str, text.Description]) -> set[str]:
        """Titles that three or more pictures share, most of which have files of other names."""
        agreeing: dict[str, list[bool]] = defaultdict(list)
        for name, description in described.items():
            agreeing[description.title].append(text.agrees(description.title, Path(name).name))
        return {title for title, votes in agreeing.items() if len(votes) > 2 and 2 * sum(votes) < len(votes)}

    @staticmethod
    def _language(description: text.Description) -> str:
        artist = description.artist.lower()
        for part, language in text.FOREIGN_ARTISTS.items():
            if part in artist:
                return language
        return description.language or "en"

    def _captioned(self, name: str, description: text.Description, collections: set[str]) -> _Picture | None:
        note = self._account.note
        tags = text.clean_tags(description.tags, description.artist)
        if len(tags) < len([tag for tag in description.tags if tag.strip()]):
            note("picture changed: tags removed", name)
        title, language = text.clean_title(description.title, description.artist), self._language(description)
        if description.title in collections and not (title and text.names_tag(title, tags)):
            if "theme" in description.tags or "theme" in description.title.lower():
                note("picture left out: a theme icon whose title names the theme", name)
                return None
            title = text.from_file_name(Path(name).name, description.artist, description.title)
            note("picture changed: its title names a collection, the file's name or the tags are used", name)
        elif title != description.title:
            note("picture changed: title cleaned", name)
        title = title if any(len(word) > 2 for word in title.split()) else ""
        if title and language == "en" and (longer := text.with_kind(title, tags)) != title:
            note('picture changed: "flag" or "map" added to the title, from its tags', name)
            title = longer
        captions = {"en": title if language == "en" else ", ".join(tags)}
        if not captions["en"] and tags:
            note("picture changed: no title left, the tags are used", name)
            captions["en"] = ", ".join(tags)
        if not captions["en"]:
            note("picture left out: neither title nor tags describe it", f"{name}: {description.title[:60]}")
            return None
        if language != "en" and title:
            note(f"picture changed: its title is kept as a caption in {language}, the tags in English", name)
            captions[language] = title
        return _Picture(name, text.mend(description.artist), captions, tags)

    def _capped(self, pictures: list[_Picture]) -> Iterator[_Picture]:
        times: Counter[str] = Counter()
        for picture in pictures:
            caption = plain_english(picture.captions["en"])
            times[caption] += 1
            if times[caption] <= self.max_per_caption:
                yield picture
            else:
                self._account.note("picture left out: too many have the same caption", f"{picture.name}: {caption}")

    def _rendered(self, pictures: Iterator[_Picture]) -> list[_Picture]:
        kept: list[_Picture] = []
        seen: dict[str, str] = {}
        for picture in pictures:
            path = self._folders[0] / f"{picture.name}.png"
            try:
                header = read_header(path)
                large = bounded_picture(path, 4 * self.side)
                image = trimmed(large, self.side)
            except PictureRefused as reason:
                self._account.note(f"picture left out: {reason}", picture.name)
                continue
            if header.width * header.height > 10_000_000:
                size = f"{picture.name}: {header.width} × {header.height}"
                self._account.note("picture changed: more than 10 megapixels, scaled down", size)
            if image.width * large.height != image.height * large.width:
                self._account.note("picture changed: white margins cut off", picture.name)
            first = seen.setdefault(hashlib.sha256(image.tobytes()).hexdigest() + str(image.size), picture.name)
            if first != picture.name:
                self._account.note("picture left out: the same pixels as another", f"{picture.name} = {first}")
                continue
            picture.data, picture.original_size = png_bytes(image), (header.width, header.height)
            picture.pixels, picture.outline = mirror_free_hash(image), outline_hash(image)
            kept.append(picture)
        return kept

    @cached_property
    def _side_of(self) -> dict[str, str]:
        """By picture, the first of the pictures that must stay on its side of the split."""
        keys: dict[str, list[tuple[str, str]]] = {}
        for picture in self._pictures:
            keys[picture.name] = [
                *(("caption", text.colourless(caption)) for caption in picture.captions.values()),
                ("pixels", picture.pixels),
                *([("outline", picture.outline)] if picture.outline else []),
            ]
        return connected(keys)

    @cached_property
    def _split_of(self) -> dict[str, str]:
        shares = {"train": 1 - self.val_share - self.test_share, "val": self.val_share, "test": self.test_share}
        shares = {split: share for split, share in shares.items() if share > 0}
        return {name: hashed_split(side, shares, f"openclipart-{self.seed}") for name, side in self._side_of.items()}

    def _sample(self, picture: _Picture) -> RawSample:
        category, *rest = picture.name.split("/")[:-1] or [""]
        metadata = {
            "name": picture.name,
            "group": plain_english(picture.captions["en"]),
            "category": category,
            "subcategory": "/".join(rest),
            "near_duplicates": self._side_of[picture.name],
            "captions": {language: [caption] for language, caption in picture.captions.items()},
            "tags": picture.tags,
            "artist": picture.artist,
            "original_size": picture.original_size,
        }
        members = {"png": picture.data, "txt": picture.captions["en"].encode("utf-8")}
        if picture.tags:
            members["tags.txt"] = ", ".join(picture.tags).encode("utf-8")
        return RawSample(key_from(picture.name), members | {"json": json_member(metadata)})


def outline_hash(image: Image.Image) -> str:
    """A difference hash: for each of 8 × 8 cells, whether it is lighter than its right neighbour.

    The same for the mirror image; "" for pictures with too little structure to tell them apart.
    """

    def bits(picture: Image.Image) -> str:
        cells = picture.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
        return "".join("01"[cells[9 * row + i] > cells[9 * row + i + 1] + 2] for row in range(8) for i in range(8))

    found = min(bits(image), bits(ImageOps.mirror(image)))
    return found if found.count("1") >= 10 else ""
