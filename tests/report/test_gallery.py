import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmalign.report.examples import Example, Item, Result, save_media
from mmalign.report.gallery import MAX_SOUND_SECONDS, PICTURE_SIDE, gallery, tile


def png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("L", size).save(file, "png")
    return file.getvalue()


def flac(seconds: float) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, int(8000 * seconds)).astype(np.float32)
    soundfile.write(file, samples, 8000, format="FLAC")
    return file.getvalue()


def decoded(uri: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


def test_pictures_are_shrunk_and_sounds_cut(tmp_path: Path) -> None:
    item = Item(
        "k", "t", save_media(tmp_path, "k", "png", png((900, 300))), save_media(tmp_path, "k", "flac", flac(30))
    )
    shown = tile(tmp_path, item)
    assert Image.open(decoded(shown.picture)).size == (PICTURE_SIDE, PICTURE_SIDE // 3)
    assert soundfile.info(decoded(shown.sound)).duration == MAX_SOUND_SECONDS
    assert shown.seconds == 30
    assert max(shown.bars) == 1
    assert shown.missing == ""


@pytest.mark.parametrize("picture", [b"", b"<svg onload='alert(1)'/>", png((64, 64))[:60], png((9000, 9000))])
@pytest.mark.parametrize("sound", [b"", b"RIFF", flac(1)[:40], flac(0)])
def test_media_that_cannot_be_shown_are_named(tmp_path: Path, picture: bytes, sound: bytes) -> None:
    item = Item("k", "t", save_media(tmp_path, "k", "png", picture), save_media(tmp_path, "k", "flac", sound))
    shown = tile(tmp_path, item)
    assert (shown.picture, shown.sound, shown.missing) == ("", "", "picture and sound")


def test_an_item_is_shown_as_what_took_part(tmp_path: Path) -> None:
    item = Item("k", "words", save_media(tmp_path, "k", "png", png((8, 8))), save_media(tmp_path, "k", "flac", flac(1)))
    seen = {name: tile(tmp_path, item, name) for name in ("image", "speech[fr]", "text[en]", "fused")}
    shown = {name: (bool(t.picture), bool(t.sound), t.text, t.note) for name, t in seen.items()}
    assert shown == {
        "image": (True, False, "", "words"),
        "speech[fr]": (False, True, "", "words"),
        "text[en]": (False, False, "words", ""),
        "fused": (True, True, "words", ""),
    }
    searched = tile(tmp_path, item, "fused", without="image")
    assert (searched.picture, bool(searched.sound), searched.text) == ("", True, "words")


def test_successes_a_near_miss_and_the_worst(tmp_path: Path) -> None:
    ranks = [1, 40, 1, 3, 1, 7, 900, 2]
    examples = [
        Example("c", "text->text", Item(str(i), "q"), rank, [Result(Item("r", "r"), 0.5, True)] * 9)
        for i, rank in enumerate(ranks)
    ]
    (group,) = gallery(tmp_path, examples, per_kind=2, results=5)
    assert [shown.rank for shown in group.found] == [1, 1]
    assert [shown.rank for shown in group.missed] == [2, 900]
    assert len(group.found[0].results) == 5
