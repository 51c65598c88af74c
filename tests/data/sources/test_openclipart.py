"""Open Clip Art's layout in small, every cleaning rule, and the real thing."""

import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign import assets
from mmalign.data.sample import RawSample
from mmalign.data.sources import openclipart_text as text
from mmalign.data.sources.openclipart import OpenClipart, outline_hash

SVG = """<?xml version="1.0" encoding="UTF-8"?>{doctype}
<svg xmlns="http://www.w3.org/2000/svg"><title>not this one</title><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
<dc:title>{title}</dc:title><dc:description>HASH(0x1)</dc:description>
<dc:subject><rdf:Bag>{tags}</rdf:Bag></dc:subject>
<dc:publisher><cc:Agent><dc:title>Publisher</dc:title></cc:Agent></dc:publisher>
<dc:creator><cc:Agent><dc:title>{artist}</dc:title></cc:Agent></dc:creator>
<dc:language>{language}</dc:language></cc:Work></rdf:RDF></metadata></svg>"""


def _svg(title: str, tags: str = "", artist: str = "Jo Painter", language: str = "en", doctype: str = "") -> str:
    items = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags.split(","))
    return SVG.format(title=title, tags=items, artist=artist, language=language, doctype=doctype)


class Library:
    """Two folders that fill up as pictures are added."""

    def __init__(self, root: Path) -> None:
        self.pictures, self.drawings = root / "png", root / "svg"
        self.count = 0

    def add(self, name: str, drawing: str | None = None, pixels: np.ndarray | None = None) -> Path:
        self.count += 1
        if pixels is None:
            pixels = np.random.default_rng(self.count).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        path = self.pictures / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        if drawing is not None:
            target = self.drawings / f"{name}.svg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(drawing, encoding="utf-8")
        return path

    def source(self, **settings: int) -> OpenClipart:
        return OpenClipart(self.pictures, self.drawings, **settings)

    def samples(self, **settings: int) -> dict[str, RawSample]:
        source = self.source(**settings)
        return {str(sample.metadata["name"]): sample for split in source.splits() for sample in source.samples(split)}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path)


def test_a_picture_has_caption_tags_and_artist(library: Library) -> None:
    library.add(
        "animals/frog_jo_painter_01", _svg("Green Frog", "hash(0x8a0a540),,amphibian,hash,jo painter,frog_pond,17")
    )
    frog = library.samples(side=16)["animals/frog_jo_painter_01"]
    assert frog.members["txt"] == b"Green Frog"
    assert frog.members["tags.txt"] == b"amphibian, frog pond"
    assert Image.open(io.BytesIO(frog.members["png"])).size == (16, 12)
    assert frog.metadata["captions"] == {"en": ["Green Frog"]}
    assert (frog.metadata["artist"], frog.metadata["category"], frog.group) == ("Jo Painter", "animals", "green frog")
    assert [variant.data for variant in frog.variants("txt|tags.txt")] == [b"Green Frog", b"amphibian, frog pond"]


@pytest.mark.parametrize(
    ("title", "artist", "clean"),
    [
        ("Clipart by Rob Davenport - United States - Ohio", "Rob Davenport", "United States - Ohio"),
        ("arbre_modern_bw", "Jean-Victor Balin", "arbre modern in black and white"),
        ("Crawfish (B and W)", "Gerald G.", "Crawfish in black and white"),
        ("filmPhoto3", "x@y.org", "film Photo"),
        ("Tigre01", "", "Tigre"),
        ("Leone 02", "", "Leone"),
        ("BlueMan#101", "", "Blue Man"),
        ("hill - RPG map elements", "Nicu Buculei", "hill"),
        ("Chalet di montagna Architetto Francesco Rollandin", "Architetto Francesco Rollandin", "Chalet di montagna"),
        ("Coccinella Rollandin", "Architetto Francesco Rollandin", "Coccinella"),
        ("Telefono (email: someone@example.org)", "", "Telefono"),
        ("Gelato all&#39;italiana", "", "Gelato all'italiana"),
        ("Mikol\x9a", "", "Mikolš"),
        ("large_braces.svg", "", "large braces"),
        ("Route 66", "", "Route 66"),
        ("45 RPM record", "", "45 RPM record"),
        ("mp3", "", "mp3"),
        ("HASH(0x862bbb8)", "", ""),
        ("Stefan Graubner", "Stefan Graubner", ""),
        ("What's Up, Doc?", "Ben", "What's Up, Doc?"),
    ],
)
def test_titles_are_cleaned(title: str, artist: str, clean: str) -> None:
    assert text.clean_title(title, artist) == clean


def test_a_title_of_a_collection_is_not_used(library: Library) -> None:
    for name in ("road_works", "no_buses", "lorry_bw", "v03"):
        library.add(f"signs/{name}", _svg("SVG Road Signs", "roadsign,transport"))
    for name in ("bordered_h_2", "bordered_h_3", "white_s_9"):
        library.add(f"cards/{name}", _svg("card", "card,bordered"))
    for name in ("down", "up", "zip"):
        library.add(f"computer/{name}", _svg("Lemon SVG theme", "theme,icons,computer"))
    for name in ("cloud_jo_painter_01", "cloud_jo_painter_02", "cloud_jo_painter_03"):
        library.add(f"weather/{name}", _svg("Cloud"))
    captions = {name: sample.members["txt"].decode() for name, sample in library.samples().items()}
    assert captions == {
        "signs/road_works": "works",
        "signs/no_buses": "no buses",
        "signs/lorry_bw": "lorry in black and white",
        "signs/v03": "roadsign, transport",
        **dict.fromkeys(["cards/bordered_h_2", "cards/bordered_h_3", "cards/white_s_9"], "card"),
        **{f"weather/cloud_jo_painter_0{i}": "Cloud" for i in (1, 2, 3)},
    }


def test_other_languages_do_not_pass_for_english(library: Library) -> None:
    library.add("a/cavallo", _svg("Cavallo", "horse,mammal", artist="Architetto Francesco Rollandin"))
    library.add("a/perro", _svg("Perro", "dog", language="es-ES"))
    library.add("a/zanzara", _svg("Zanzara", "unsorted", artist="Architetto Francesco Rollandin"))
    library.add("a/cat", _svg("Cat", "pet", language="EN"))
    found = {name: sample.metadata["captions"] for name, sample in library.samples().items()}
    assert found == {
        "a/cavallo": {"en": ["horse, mammal"], "it": ["Cavallo"]},
        "a/perro": {"en": ["dog"], "es": ["Perro"]},
        "a/cat": {"en": ["Cat"]},
    }


def test_flags_and_maps_say_what_they_are(library: Library) -> None:
    library.add("flags/senegal", _svg("Senegal", "flag,africa"))
    library.add("maps/oz", _svg("Map of Oz", "map"))
    found = {name: sample.members["txt"] for name, sample in library.samples().items()}
    assert found == {"flags/senegal": b"Senegal flag", "maps/oz": b"Map of Oz"}


def test_what_is_left_out_is_counted_by_reason(library: Library) -> None:
    first = library.add("a/boat", _svg("Boat"))
    (library.pictures / "b").mkdir()
    (library.pictures / "b/boat.png").symlink_to("../a/boat.png")
    (library.pictures / "b/copy.png").write_bytes(first.read_bytes())
    with Image.open(first) as same:
        same.save(library.pictures / "b/pixels.png", compress_level=0)
    (library.drawings / "b").mkdir()
    (library.drawings / "b/pixels.svg").write_text(_svg("Ship"))
    library.add("a/alone")
    library.add("a/entity", _svg("&big;", doctype='<!DOCTYPE svg [<!ENTITY big "ha">]>'))
    library.add("a/cut", _svg("Cut")[:300])
    library.add("a/nothing", _svg("", "hash,unsorted,11"))
    library.add("a/broken", _svg("Broken")).write_bytes(b"\x89PNG\r\n\x1a\n")
    for i in range(4):
        library.add(f"a/star{i}", _svg("Star"))
    source = library.source(max_per_caption=3)
    kept = [str(sample.metadata["name"]) for split in source.splits() for sample in source.samples(split)]
    assert sorted(kept) == ["a/boat", "a/star0", "a/star1", "a/star2"]
    report = source.report()
    assert (report["pictures_found"], report["pictures_kept"]) == (13, 4)
    assert {reason: entry["items"] for reason, entry in report["rules"].items() if "left out" in reason} == {
        "picture left out: a copy of another": ["b/copy = a/boat"],
        "picture left out: a link to another": ["b/boat"],
        "picture left out: neither title nor tags describe it": ["a/nothing: "],
        "picture left out: not a PNG picture": ["a/broken"],
        "picture left out: the drawing declares XML entities": ["a/entity"],
        "picture left out: the drawing is no well-formed XML": ["a/cut"],
        "picture left out: the same pixels as another": ["b/pixels = a/boat"],
        "picture left out: there is no drawing with its title": ["a/alone"],
        "picture left out: too many have the same caption": ["a/star3: star"],
    }


def test_entities_are_neither_expanded_nor_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    laughs = '<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "&{a};&{a};&{a};">' for a, b in zip("abcdef", "bcdefg", strict=True)
    )
    for doctype in (f"<!DOCTYPE svg [{laughs}]>", f'<!DOCTYPE svg [<!ENTITY g SYSTEM "file://{tmp_path}/secret">]>'):
        (tmp_path / "x.svg").write_text(_svg("&g;", doctype=doctype))
        with pytest.raises(text.DrawingRefused, match="entities"):
            text.read_description(tmp_path / "x.svg")
    (tmp_path / "x.svg").write_text(_svg("Fine", doctype='<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "svg10.dtd">'))
    assert text.read_description(tmp_path / "x.svg").title == "Fine"


def test_variants_of_a_drawing_stay_on_one_side(library: Library) -> None:
    pixels = np.random.default_rng(7).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    library.add("a/ball", _svg("Ball"), pixels)
    library.add("a/globe", _svg("Globe"), pixels[:, ::-1].copy())
    library.add("a/sphere", _svg("Sphere"), (pixels * 0.9 + 20).astype(np.uint8))
    library.add("b/car_red", _svg("Car (red)"))
    library.add("b/car_blue", _svg("blue car 2"))
    library.add("b/tree", _svg("Tree"))
    sides = {name: sample.metadata["near_duplicates"] for name, sample in library.samples().items()}
    assert sides["a/ball"] == sides["a/globe"] == sides["a/sphere"]
    assert sides["b/car_red"] == sides["b/car_blue"]
    assert len(set(sides.values())) == 3


def test_outlines_ignore_mirroring_and_flat_pictures_have_none() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 90, 3), dtype=np.uint8))
    assert outline_hash(image) == outline_hash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert outline_hash(Image.new("RGB", (40, 40), "red")) == ""


def test_pictures_and_drawings_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both pictures and drawings"):
        OpenClipart(pictures=tmp_path)


@pytest.mark.assets
def test_the_real_captions_are_clean() -> None:
    try:
        assets.fetch("openclipart-png")
        assets.fetch("openclipart-svg")
    except ConnectionError:
        pytest.skip("the assets openclipart-png and openclipart-svg cannot be fetched here")
    source = OpenClipart()
    described = source._described()
    collections = source._collections(described)
    found = [source._captioned(name, description, collections) for name, description in described.items()]
    pictures = list(source._capped([picture for picture in found if picture]))
    assert 3000 < len(pictures) < 3800
    assert max(Counter(picture.captions["en"].lower() for picture in pictures).values()) <= 8
    for picture in pictures:
        everything = " | ".join([*picture.captions.values(), *picture.tags]).lower()
        assert "hash(" not in everything
        assert not re.search(r"\b0x[0-9a-f]{4}", everything)
        assert "rollandin" not in everything
        assert "nicu buculei" not in everything
        assert "@" not in everything
        assert "_" not in picture.captions["en"]
    accounted = sum(
        entry["count"] for reason, entry in source._account.as_json().items() if reason.startswith("picture left out")
    )
    assert accounted + len(pictures) == len(source._files) == 8121
