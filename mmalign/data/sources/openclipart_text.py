"""Titles and tags of Open Clip Art's drawings: reading them out of the SVG's metadata, and cleaning them.

Each function is one rule; `openclipart.py` says in which order they apply and counts what they did.
"""

import html
import re
import xml.parsers.expat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_DUBLIN_CORE = "http://purl.org/dc/elements/1.1/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"

HOUSEKEEPING_TAGS = frozenset(
    ["appicon", "clip art", "clipart", "general", "hash", "icons", "image", "lemon theme icon", "magick", "mapsym"]
) | frozenset(["miscellany", "networksym", "none", "openclipart", "special", "svg", "theme", "unsorted", "weathersym"])
"""Tags that sort the library and say nothing of the picture."""

FOREIGN_ARTISTS = {"rollandin": "it", "guillou": "fr"}
"""Artists (a part of the name, in lower case) who title in their own language while the metadata say English."""

COLOURS = frozenset(
    "black white grey gray red green blue seagreen yellow orange purple violet pink brown".split()  # noqa: SIM905
)

_SHORT = frozenset(["bw", "cd", "tv", "pc", "no", "up", "in", "on", "of", "to", "by"])
_NO_WORDS = frozenset(["clipart", "by", "gnome", "mime"])


class DrawingRefused(ValueError):
    """The metadata cannot be read; the message is the reason, without the drawing's name."""


@dataclass(frozen=True)
class Description:
    """What a drawing's metadata say of it, uncleaned. `language` is two letters, "" where it is nonsense."""

    title: str
    tags: tuple[str, ...]
    artist: str
    language: str


def read_description(drawing: Path) -> Description:
    """Title, tags, artist and language from the RDF in an SVG file.

    Raises:
        DrawingRefused: it is no well-formed XML, or it declares entities (they can expand without bound).
    """
    found: dict[str, list[str]] = {}
    stack: list[str] = []
    text: list[str] = []
    parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
    names = {
        f"{_DUBLIN_CORE} {name}": name for name in ("title", "subject", "creator", "language", "publisher", "rights")
    }
    names |= {f"{_RDF} li": "li"}

    def start(name: str, _: dict[str, str]) -> None:
        stack.append(names.get(name, ""))
        text.clear()

    def end(_: str) -> None:
        place = "/".join(filter(None, stack))
        found.setdefault(place, []).append("".join(text).strip())
        stack.pop()
        text.clear()

    def refuse(*_: object) -> None:
        raise DrawingRefused("the drawing declares XML entities")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(drawing.read_bytes(), True)
    except xml.parsers.expat.ExpatError as error:
        raise DrawingRefused("the drawing is no well-formed XML") from error
    language = found.get("language", [""])[0].strip().lower()[:2]
    return Description(
        title=found.get("title", [""])[0],
        tags=tuple(found.get("subject/li", ())),
        artist=found.get("creator/title", [""])[0],
        language=language if re.fullmatch("[a-z]{2}", language) and language not in ("al", "n/") else "",
    )


def mend(text: str) -> str:
    """Undo what software did to the text: entities, Windows characters read as control codes, Perl's `HASH(0x…)`."""
    text = html.unescape(text)
    text = re.sub("[\x80-\x9f]", lambda match: match[0].encode("latin-1").decode("cp1252", "ignore"), text)
    text = re.sub(r"hash\(0x[0-9a-f]+\)|\b0x[0-9a-f]{5,}\b", " ", text, flags=re.IGNORECASE)
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())


def without_addresses(text: str) -> str:
    """Without web and mail addresses, and the brackets they stood in."""
    text = re.sub(r"\(\s*e?-?mail:[^)]*\)|https?://\S+|www\.\S+|\S+@\S+\.\S+", " ", text, flags=re.IGNORECASE)
    return " ".join(re.sub(r"[(\[]\s*[)\]]", " ", text).split())


def name_words(artist: str) -> set[str]:
    """The words of an artist's name that are long enough to be recognised, in lower case."""
    return {word for word in re.findall(r"[^\W\d_]{3,}", mend(artist).lower()) if word not in ("the", "and", "design")}


def spaced(name: str) -> str:
    """Words of something written like a file name: no extension, no underscores, no camelCase, no counters."""
    name = re.sub(r"\.(svg|png|ai|eps)$", "", name, flags=re.IGNORECASE)
    if " " not in name.strip():
        name = re.sub(r"(?<=[a-zà-ÿ])(?=[A-Z])", " ", name)
        name = re.sub(r"[-_.]+", " ", name)
        name = re.sub(r"(?<=[^\W\d_]{3})\d+(?=\s|$)", "", name)
        name = re.sub(r"(^|\s)\d+(?=\s|$)", " ", name)
    name = name.replace("_", " ")
    name = re.sub(r"\s*#\s*\d+|(?<=[^\W\d_]{3})\d{1,2}\b", "", name)
    name = re.sub(r"\s+(0\d*|\d)$|(?<=[a-zà-ÿ])0\d$", "", name.strip())
    return " ".join(name.split())


def clean_title(title: str, artist: str) -> str:
    """A title without what is no description: addresses, the artist, collection suffixes, counters. Perhaps nothing."""
    title = without_addresses(mend(title))
    title = re.sub(r"^clipart by .+? - ", "", title, flags=re.IGNORECASE)
    title = re.sub(r"\s+- (RPG map elements|body part|clothing)$|\bopenclipart\b", "", title, flags=re.IGNORECASE)
    title = spaced(title)
    title = re.sub(r"\(?\b(b and w|b&w|b/w|b w|bw)\b\)?", "in black and white", title, flags=re.IGNORECASE)
    plain_artist = mend(artist)
    if plain_artist:
        title = re.sub(rf"\(?\b(by\s+)?{re.escape(plain_artist)}\b\)?", " ", title, flags=re.IGNORECASE)
    words = title.split()
    surnames = name_words(artist)
    while words and (stripped := words[-1].strip("()-,").lower()) in surnames and stripped not in ("park", "linux"):
        words.pop()
    if words and words[-1].lower() == "by":
        words.pop()
    return " ".join(words).strip(" -,;:_")


def clean_tags(tags: Iterable[str], artist: str) -> list[str]:
    """Tags that describe: no hashes, numbers, addresses, artists' names, housekeeping or overlong words; once each."""
    kept: list[str] = []
    artist_words, artist = name_words(artist), mend(artist).lower()
    for raw in tags:
        tag = " ".join(without_addresses(mend(raw)).replace("_", " ").lower().split()).strip(" ,.;")
        words = re.findall(r"[^\W\d_]+", tag)
        useless = tag in HOUSEKEEPING_TAGS or not any(len(word) > 1 for word in words) or len(max(words, key=len)) > 20
        of_artist = tag == artist or all(word in artist_words for word in words)
        if not useless and not of_artist and tag not in kept:
            kept.append(tag)
    return kept


def from_file_name(stem: str, artist: str, title: str) -> str:
    """A caption made of a file's name, for pictures whose title names a collection; "" when nothing is left.

    The library names files `TITLE_ARTIST_NUMBER`, cut to a length. Words of the artist's name and of the collection's
    title are taken out, and so are words with digits inside, without a vowel, or of one or two letters.
    """
    unwanted = name_words(artist) | _NO_WORDS
    if not title.lower().startswith("clipart by"):  # what follows in these is the name of one of the files
        unwanted |= set(re.findall(r"[a-z]+", title.lower()))
    stem = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    words = [re.sub(r"^\d+|\d+$", "", word).lower() for word in re.split(r"[\W_]+", stem)]
    own = [word for word in words if word.isalpha() and word not in unwanted]
    own = [word for word in own if word in _SHORT or (len(word) > 2 and re.search("[aeiouy]|[^a-z]", word))]
    if not any(len(word) > 2 for word in own):
        return ""
    return " ".join("in black and white" if word == "bw" else word for word in own)


def agrees(title: str, stem: str) -> bool:
    """Whether a file is named after its title, as the library does: then the title is this picture's own."""

    def squeezed(text: str) -> str:
        return re.sub(r"[\W_\d]+", "", text.lower())

    own = squeezed(title)
    return bool(own) and (squeezed(stem).startswith(own[:12]) or own.startswith(squeezed(stem)[:12].ljust(8)))


def names_tag(title: str, tags: Iterable[str]) -> bool:
    """Whether a title is one of the tags, but for its last two letters ("stick man", "stickmen")."""
    own = re.sub(r"[\W_]+", "", title.lower())
    others = [re.sub(r"[\W_]+", "", tag) for tag in tags]
    return own in others or any(len(own) == len(other) > 4 and own[:-2] == other[:-2] for other in others)


def with_kind(caption: str, tags: Iterable[str]) -> str:
    """A flag or map that is titled with the country alone says what it is: "Senegal" becomes "Senegal flag"."""
    for kind in ("flag", "map"):
        if kind in tags and not re.search(rf"{kind}", caption, flags=re.IGNORECASE):
            return f"{caption} {kind}"
    return caption


def colourless(caption: str) -> str:
    """A caption for finding variants of one drawing: no colours, numbers or "in black and white"."""
    words = re.findall(r"[^\W\d_]+", caption.lower().replace("in black and white", " "))
    return " ".join(word for word in words if word not in COLOURS) or caption.lower()
