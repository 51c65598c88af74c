"""Tux Paint's stamps: a picture, what it is called in many languages, people who say it, and often its sound.

A stamp is `NAME.png` with `NAME.txt`, whose first line is the English caption and whose other lines are
`LANGUAGE.utf8=caption`. `NAME_desc.ogg` and `NAME_desc_LANGUAGE.ogg` are a person who speaks the caption, `NAME.ogg` is
what the thing sounds like.

Rules (each is counted in the report with the names it struck or changed):
- left out: stamps without a PNG (a drawing only: nothing here draws SVG), without a caption file (mirrored variants of
  another stamp are such), with a caption file that is not UTF-8 or whose first line is empty, or with a broken picture;
- left out of a stamp: caption lines that are not `LANGUAGE.utf8=text`, or empty; captions that repeat the English one
  in another language (nobody translated them); recordings that cannot be decoded or are silent;
- control characters are removed from captions; of an `.ogg` and a `.wav` of the same name, the `.ogg` is taken;
- stamps stay on one side of the split when they share, directly or through others, the English caption (apart from
  case, punctuation and article), the caption in any other language, the picture or its mirror image, or a recording.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmalign import assets
from mmalign.assets.hashing import entry_sha256, tree_files, tree_sha256
from mmalign.data.sample import RawSample
from mmalign.data.sources.accounting import Account
from mmalign.data.sources.base import Source, hashed_split, json_member, key_from
from mmalign.data.sources.near_duplicates import connected, plain_english, plain_text
from mmalign.data.sources.pictures import PictureRefused, bounded_picture, mirror_free_hash, png_bytes, read_header
from mmalign.data.sources.recordings import RecordingRefused, flac_recording

_CAPTION = re.compile(r"(?P<language>[A-Za-z]{2,3}(?:_[A-Z]{2})?(?:@[a-z]+)?)\.utf8=(?P<text>.*)")
_RECORDING = re.compile(r"(?P<stamp>.+?)(?P<spoken>_desc(?:_(?P<language>[a-z]{2,3}(?:_[A-Z]{2})?(?:@[a-z]+)?))?)?")


@dataclass
class _Stamp:
    """`name`: path below the stamps folder, without extension. `speech`: file by language. `sound`: file or None."""

    name: str
    captions: dict[str, str]
    picture: bytes
    picture_hash: str
    original_size: tuple[int, int]
    speech: dict[str, Path] = field(default_factory=dict)
    sound: Path | None = None


class TuxPaint(Source):
    """Pictures (`png`), English captions (`txt`), all captions (in the json), `speech.LANGUAGE.flac`, `sound.flac`.

    Args:
        stamps: a folder in the layout of Tux Paint's; None takes the asset `tuxpaint-stamps` and fetches it if need be.
        side: longest side of a stored picture, in pixels.
        sample_rate_hz: of stored recordings.
        val_share: about this share of the stamps is for validation.
        test_share: about this share of the stamps is for testing.
        seed: another one gives other splits.
    """

    name = "tuxpaint"
    licence = "GPL-2.0-or-later"
    description = (
        "Tux Paint's rubber stamps: photographs and drawings of things, their captions in about 75 languages, people "
        "who speak the captions in about a dozen, and the sounds of some of the things."
    )

    def __init__(
        self,
        stamps: Path | None = None,
        side: int = 224,
        sample_rate_hz: int = 16000,
        val_share: float = 0.05,
        test_share: float = 0.22,
        seed: int = 0,
    ) -> None:
        if side < 1 or sample_rate_hz < 1:
            raise ValueError(f"side is {side} and sample_rate_hz {sample_rate_hz}: both must be at least 1")
        if val_share < 0 or test_share < 0 or val_share + test_share >= 1:
            raise ValueError(f"val_share {val_share} and test_share {test_share} must leave something for training")
        self.stamps = stamps
        self.side = side
        self.sample_rate_hz = sample_rate_hz
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed
        self._account = Account()

    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    def samples(self, split: str) -> Iterator[RawSample]:
        self.check_split(split)
        for stamp in self._stamps:
            if self._split_of[stamp.name] == split:
                yield self._sample(stamp)

    def provenance(self) -> dict[str, Any]:
        if self.stamps is None:
            assets.fetch("tuxpaint-stamps")
            return assets.provenance("tuxpaint-stamps")
        hashes = {path.as_posix(): entry_sha256(self.stamps / path) for path in tree_files(self.stamps)}
        return {"folder": self.stamps.name, "tree_sha256": tree_sha256(hashes)}

    def report(self) -> dict[str, Any]:
        groups = {self._side_of[stamp.name] for stamp in self._stamps}
        return {
            "stamps_kept": len(self._stamps),
            "near_duplicate_groups": len(groups),
            "rules": self._account.as_json(),
        }

    @cached_property
    def _root(self) -> Path:
        root = assets.fetch("tuxpaint-stamps") if self.stamps is None else self.stamps
        if not root.is_dir():
            raise FileNotFoundError(f"stamps: {root} is no folder")
        return root

    @cached_property
    def _stamps(self) -> list[_Stamp]:
        found = {}
        for text in sorted(self._root.rglob("*.txt"), key=lambda path: path.relative_to(self._root).as_posix()):
            if stamp := self._read_stamp(text):
                found[stamp.name] = stamp
        for picture in sorted(self._root.rglob("*.png")):
            if not picture.with_suffix(".txt").exists():
                self._account.note("stamp left out: a picture without a caption file", self._name(picture))
        self._attach_recordings(found)
        if not found:
            raise ValueError(f"stamps: {self._root} holds no stamp (NAME.png with NAME.txt)")
        return list(found.values())

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).with_suffix("").as_posix()

    def _read_stamp(self, text: Path) -> _Stamp | None:
        name, picture = self._name(text), text.with_suffix(".png")
        if not picture.exists():
            drawn = text.with_suffix(".svg").exists()
            reason = "only an SVG drawing, no PNG" if drawn else "a caption file without a picture"
            self._account.note(f"stamp left out: {reason}", name)
            return None
        captions = self._read_captions(text, name)
        if captions is None:
            return None
        try:
            header = read_header(picture)
            image = bounded_picture(picture, self.side)
        except PictureRefused as reason:
            self._account.note(f"stamp left out: {reason}", name)
            return None
        return _Stamp(name, captions, png_bytes(image), mirror_free_hash(image), (header.width, header.height))

    def _read_captions(self, text: Path, name: str) -> dict[str, str] | None:
        try:
            english, *lines = text.read_bytes().decode("utf-8-sig").split("\n") or [""]
        except UnicodeDecodeError:
            self._account.note("stamp left out: its caption file is not UTF-8", name)
            return None
        captions = {"en": english.strip()}
        if not captions["en"]:
            self._account.note("stamp left out: its English caption is empty", name)
            return None
        for line in filter(str.strip, lines):
            plain = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", line).strip()
            match = _CAPTION.fullmatch(plain)
            if plain != line.strip():
                self._account.note("caption changed: control characters removed", f"{name}: {plain[:40]}")
            caption = match["text"].strip() if match else ""
            if match is None:
                self._account.note("caption left out: no line of the form LANGUAGE.utf8=text", f"{name}: {plain[:40]}")
            elif not caption:
                self._account.note("caption left out: empty", f"{name} ({match['language']})")
            elif plain_text(caption) == plain_text(captions["en"]):
                self._account.note("caption left out: the same as in English", f"{name} ({match['language']})")
            else:
                captions[match["language"]] = caption
        return captions

    def _attach_recordings(self, stamps: dict[str, _Stamp]) -> None:
        recordings = [*self._root.rglob("*.ogg"), *self._root.rglob("*.wav")]
        # "x.ogg" sorts before "x.wav", so that the first of a name is the one to take.
        for path in sorted(recordings, key=lambda path: path.relative_to(self._root).as_posix()):
            match = _RECORDING.fullmatch(path.stem)
            assert match is not None
            stamp = stamps.get(self._name(path.with_name(match["stamp"] + ".png")))
            shown = path.relative_to(self._root).as_posix()
            if stamp is None:
                self._account.note("recording left out: its stamp is left out", shown)
            elif match["spoken"]:
                if stamp.speech.setdefault(match["language"] or "en", path) is not path:
                    self._account.note("recording left out: there is an .ogg of the same name", shown)
            elif stamp.sound is None:
                stamp.sound = path
            else:
                self._account.note("recording left out: there is an .ogg of the same name", shown)

    @cached_property
    def _side_of(self) -> dict[str, str]:
        """By stamp, the first of the stamps that must stay on its side of the split."""
        keys: dict[str, list[tuple[str, str]]] = {}
        for stamp in self._stamps:
            recordings = [*stamp.speech.values(), *([stamp.sound] if stamp.sound else [])]
            keys[stamp.name] = [
                ("en", plain_english(stamp.captions["en"])),
                ("picture", stamp.picture_hash),
                *((language, plain_text(caption)) for language, caption in stamp.captions.items()),
                *(("recording", hashlib.sha256(path.read_bytes()).hexdigest()) for path in recordings),
            ]
        return connected(keys)

    @cached_property
    def _split_of(self) -> dict[str, str]:
        shares = {"train": 1 - self.val_share - self.test_share, "val": self.val_share, "test": self.test_share}
        shares = {split: share for split, share in shares.items() if share > 0}
        return {name: hashed_split(side, shares, f"tuxpaint-{self.seed}") for name, side in self._side_of.items()}

    def _recording(self, path: Path) -> tuple[bytes, float] | None:
        try:
            return flac_recording(path, self.sample_rate_hz)
        except RecordingRefused as reason:
            self._account.note(f"recording left out: {reason}", path.relative_to(self._root).as_posix())
            return None

    def _sample(self, stamp: _Stamp) -> RawSample:
        speech = {language: self._recording(path) for language, path in sorted(stamp.speech.items())}
        sound = self._recording(stamp.sound) if stamp.sound else None
        kept = {language: recording for language, recording in speech.items() if recording}
        category, *rest = stamp.name.split("/")[:-1] or [""]
        metadata = {
            "name": stamp.name,
            "group": plain_english(stamp.captions["en"]),
            "category": category,
            "subcategory": "/".join(rest),
            "near_duplicates": self._side_of[stamp.name],
            "captions": {language: [caption] for language, caption in stamp.captions.items()},
            "original_size": stamp.original_size,
            "speech_seconds": {language: round(seconds, 3) for language, (_, seconds) in kept.items()},
            "sound_seconds": round(sound[1], 3) if sound else None,
        }
        members = {"png": stamp.picture, "txt": stamp.captions["en"].encode("utf-8")}
        members |= {f"speech.{language}.flac": data for language, (data, _) in kept.items()}
        if sound:
            members["sound.flac"] = sound[0]
        return RawSample(key_from(stamp.name), members | {"json": json_member(metadata)})
