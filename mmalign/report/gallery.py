"""Retrieval examples as the page shows them: small pictures, playable sounds and captions, all inside the page.

Media come from data sets that nobody vouches for: pictures are decoded under a pixel limit and written anew, sounds are
embedded only when they decode and are small; what does not decode is shown as missing.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmalign.report.examples import AUDIO_TYPES, IMAGE_TYPES, Example, Item, media_path
from mmalign.report.style import data_uri

PICTURE_SIDE = 240
MAX_PIXELS = 50_000_000
MAX_SOUND_BYTES = 600_000
MAX_SOUND_SECONDS = 12
BARS = 48
_KINDS = {"image": "image", "picture": "image", "text": "text", "caption": "text"} | dict.fromkeys(
    ("audio", "speech", "sound", "music"), "audio"
)
"""What a modality's name says about how to show it."""

_SILENCE: tuple[str, tuple[float, ...], float] = ("", (), 0.0)


@dataclass(frozen=True)
class Tile:
    """One item, ready for the template; `missing` says what could not be shown.

    `text` is what took part in the retrieval, `note` the caption of an item that took part as a picture or a sound.
    """

    key: str
    text: str = ""
    note: str = ""
    picture: str = ""
    sound: str = ""
    bars: tuple[float, ...] = ()
    seconds: float = 0.0
    missing: str = ""


@dataclass(frozen=True)
class Shown:
    """One example: the query, the rank of the first relevant item, and (tile, score, relevant) of the first results."""

    column: str
    direction: str
    rank: int
    query: Tile
    results: list[tuple[Tile, float, bool]]


@dataclass(frozen=True)
class Group:
    """The examples of one column and direction: those found at rank 1, and the others, worst last."""

    column: str
    direction: str
    found: list[Shown]
    missed: list[Shown]


def gallery(run_dir: Path, examples: Sequence[Example], per_kind: int = 2, results: int = 5) -> list[Group]:
    """At most `per_kind` successes and as many failures of every column and direction."""
    groups = []
    for column, direction in dict.fromkeys((example.column, example.direction) for example in examples):
        here = [e for e in examples if (e.column, e.direction) == (column, direction)]
        hits = [e for e in here if e.rank == 1][:per_kind]
        misses = sorted((e for e in here if e.rank > 1), key=lambda e: e.rank)
        # a near miss and a bad one say more than two near misses
        misses = misses[: per_kind - 1] + misses[-1:] if len(misses) > per_kind else misses
        shown = [[_shown(run_dir, example, results) for example in kind] for kind in (hits, misses)]
        groups.append(Group(column, direction, *shown))
    return groups


def _shown(run_dir: Path, example: Example, results: int) -> Shown:
    source, _, target = example.direction.partition("->")
    found = example.results[:results]
    tiles = [(tile(run_dir, r.item, target, without=source), r.score, r.relevant) for r in found]
    query = tile(run_dir, example.query, source, without=target)
    return Shown(example.column, example.direction, example.rank, query, tiles)


def tile(run_dir: Path, item: Item, modality: str = "", without: str = "") -> Tile:
    """What can be shown of an item that took part as `modality`: of one that no kind is known of, everything.

    "fused" stands for all but `without`, the modality on the other side, which would look like a leak.
    """
    kind, other = _kind(modality), _kind(without)
    if modality == "fused" and other:
        item = replace(item, **{other: ""})
    if kind and not getattr(item, kind):
        kind = ""
    picture, missing = "", []
    sound, bars, seconds = _SILENCE
    if item.image and kind in ("", "image"):
        path = media_path(run_dir, item.image, IMAGE_TYPES)
        picture = "" if path is None else thumbnail(path)
        missing += [] if picture else ["picture"]
    if item.audio and kind in ("", "audio"):
        path = media_path(run_dir, item.audio, AUDIO_TYPES)
        if path is not None:
            sound, bars, seconds = playable(path)
        missing += [] if sound else ["sound"]
    text, note = (item.text, "") if kind in ("", "text") else ("", item.text)
    return Tile(item.key, text, note, picture, sound, bars, seconds, " and ".join(missing))


def _kind(modality: str) -> str:
    return next((kind for word, kind in _KINDS.items() if word in modality.lower()), "")


def thumbnail(path: Path) -> str:
    """The picture, at most PICTURE_SIDE pixels on a side, as a data URI; "" when it cannot be decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                if image.width * image.height > MAX_PIXELS:
                    return ""
                image.draft("RGB", (PICTURE_SIDE, PICTURE_SIDE))
                shown = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
        shown.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        file = io.BytesIO()
        shown.save(file, "WEBP", quality=82, method=4)
    except Exception:  # a damaged picture raises whatever its decoder likes
        return ""
    return data_uri(file.getvalue(), "image/webp")


def playable(path: Path) -> tuple[str, tuple[float, ...], float]:
    """The first seconds of a sound as a data URI, the heights (0 … 1) of its envelope, its length in seconds."""
    import numpy as np
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate, seconds = file.samplerate, file.frames / file.samplerate
            samples = file.read(int(min(seconds, MAX_SOUND_SECONDS) * rate), dtype="float32", always_2d=True).mean(1)
        if not len(samples) or not np.isfinite(samples).all():
            return _SILENCE
        peaks = np.array([np.abs(part).max() if len(part) else 0.0 for part in np.array_split(samples, BARS)])
        data, kind = path.read_bytes(), AUDIO_TYPES[path.suffix[1:].lower()]
        if len(data) > MAX_SOUND_BYTES or seconds > MAX_SOUND_SECONDS:
            file = io.BytesIO()
            soundfile.write(file, samples, rate, format="FLAC")
            data, kind = file.getvalue(), AUDIO_TYPES["flac"]
    except Exception:  # as above
        return _SILENCE
    heights = peaks / max(float(peaks.max()), 1e-9)
    return data_uri(data, kind), tuple(float(height) for height in heights.round(3)), seconds
