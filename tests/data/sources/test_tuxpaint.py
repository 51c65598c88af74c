"""Tux Paint's layout in small, every rule of it, and the real thing."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmalign import assets
from mmalign.data.sample import RawSample
from mmalign.data.sources.near_duplicates import plain_text
from mmalign.data.sources.recordings import RecordingRefused, flac_recording
from mmalign.data.sources.tuxpaint import TuxPaint


def _picture(path: Path, seed: int, mirror: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 4), dtype=np.uint8)
    Image.fromarray(pixels[:, ::-1] if mirror else pixels, "RGBA").save(path)


def _sound(path: Path, pitch_hz: float, rate_hz: int = 44100, channels: int = 2, gain: float = 0.5) -> None:
    time = np.arange(rate_hz // 2) / rate_hz
    wave = gain * np.sin(2 * np.pi * pitch_hz * time)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate_hz)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    root = tmp_path / "stamps"
    for seed, name in enumerate(["animals/frog", "animals/birds/crow", "food/apple", "food/pear", "food/plum"]):
        _picture(root / f"{name}.png", seed)
    (root / "animals/frog.txt").write_text(
        "A frog.\nfr.utf8=Une grenouille.\nde.utf8=A frog!\nen_GB.utf8=A frog.\nzz\n\nes.utf8=\n"
    )
    (root / "animals/birds/crow.txt").write_text(
        "A crow.\nfr.utf8=Un corb\x93eau.\nbe.utf8=Варона.\n", encoding="utf-8"
    )
    (root / "food/apple.txt").write_text("An apple.\nsr@latin.utf8=Jabuka.\npt_BR.utf8=Uma fruta.")
    (root / "food/pear.txt").write_text("A pear.\npt_BR.utf8=uma fruta")
    (root / "food/plum.txt").write_bytes(b"A plum.\nfr.utf8=\xff\xfe")
    _sound(root / "animals/frog_desc.ogg", 300)
    _sound(root / "animals/frog_desc_fr.ogg", 400)
    _sound(root / "animals/frog_desc_fr.wav", 500)
    _sound(root / "animals/frog_desc_es.wav", 450, rate_hz=8000, channels=1)
    _sound(root / "animals/frog.ogg", 200)
    _sound(root / "food/apple_desc_ru.ogg", 300, gain=0)
    (root / "food/apple.ogg").write_bytes(b"no sound")
    _sound(root / "food/plum.ogg", 250)
    _picture(root / "animals/frog_mirror.png", 0, mirror=True)
    (root / "animals/snail.txt").write_text("A snail.")
    (root / "animals/snail.svg").write_text("<svg/>")
    (root / "animals/ghost.txt").write_text("A ghost.")
    return root


def _all(source: TuxPaint) -> dict[str, RawSample]:
    return {str(sample.metadata["name"]): sample for split in source.splits() for sample in source.samples(split)}


def test_a_stamp_has_its_picture_captions_voices_and_sound(stamps: Path) -> None:
    frog = _all(TuxPaint(stamps, side=20))["animals/frog"]
    assert list(frog.members) == [
        "png",
        "txt",
        "speech.en.flac",
        "speech.es.flac",
        "speech.fr.flac",
        "sound.flac",
        "json",
    ]
    assert frog.members["txt"] == b"A frog."
    assert frog.metadata["captions"] == {"en": ["A frog."], "fr": ["Une grenouille."]}
    assert (frog.group, frog.metadata["category"]) == ("frog", "animals")
    assert Image.open(io.BytesIO(frog.members["png"])).size == (20, 15)
    assert [variant.language for variant in frog.variants("speech.*.flac")] == ["en", "es", "fr"]
    for name, pitch_hz in [("speech.fr.flac", 400), ("speech.es.flac", 450), ("sound.flac", 200)]:
        wave, rate_hz = soundfile.read(io.BytesIO(frog.members[name]))
        assert rate_hz == 16000
        assert wave.shape == (8000,)
        assert np.abs(np.fft.rfft(wave)).argmax() == pitch_hz / 2  # bins of 2 Hz


def test_what_is_left_out_is_counted_by_reason(stamps: Path) -> None:
    source = TuxPaint(stamps)
    found = _all(source)
    assert set(found) == {"animals/frog", "animals/birds/crow", "food/apple", "food/pear"}
    assert list(found["food/apple"].members) == ["png", "txt", "json"]
    assert found["animals/birds/crow"].metadata["captions"]["fr"] == ["Un corbeau."]
    rules = {reason: entry["items"] for reason, entry in source.report()["rules"].items()}
    assert rules == {
        "caption changed: control characters removed": ["animals/birds/crow: fr.utf8=Un corbeau."],
        "caption left out: empty": ["animals/frog (es)"],
        "caption left out: no line of the form LANGUAGE.utf8=text": ["animals/frog: zz"],
        "caption left out: the same as in English": ["animals/frog (de)", "animals/frog (en_GB)"],
        "recording left out: cannot be decoded": ["food/apple.ogg"],
        "recording left out: its stamp is left out": ["food/plum.ogg"],
        "recording left out: silent": ["food/apple_desc_ru.ogg"],
        "recording left out: there is an .ogg of the same name": ["animals/frog_desc_fr.wav"],
        "stamp left out: a caption file without a picture": ["animals/ghost"],
        "stamp left out: a picture without a caption file": ["animals/frog_mirror"],
        "stamp left out: its caption file is not UTF-8": ["food/plum"],
        "stamp left out: only an SVG drawing, no PNG": ["animals/snail"],
    }
    _all(source)
    assert source.report()["rules"]["recording left out: silent"]["count"] == 1, "drawing again counts nothing twice"


def test_stamps_that_share_anything_stay_together(stamps: Path) -> None:
    _picture(stamps / "animals/toad.png", 0, mirror=True)
    (stamps / "animals/toad.txt").write_text("A toad.")
    _picture(stamps / "food/berry.png", 9)
    (stamps / "food/berry.txt").write_text("THE CROW")
    _picture(stamps / "food/nut.png", 10)
    (stamps / "food/nut.txt").write_text("A nut.")
    (stamps / "food/nut_desc_fr.ogg").write_bytes((stamps / "animals/frog_desc_fr.ogg").read_bytes())
    sides = {name: sample.metadata["near_duplicates"] for name, sample in _all(TuxPaint(stamps)).items()}
    assert sides["animals/toad"] == sides["animals/frog"] == sides["food/nut"], "mirrored picture, recording"
    assert sides["food/berry"] == sides["animals/birds/crow"], "English caption"
    assert sides["food/pear"] == sides["food/apple"], "caption in another language"
    assert len(set(sides.values())) == 3


def test_twice_the_same_and_every_stamp_once(stamps: Path) -> None:
    first, second = TuxPaint(stamps), TuxPaint(stamps)
    for split in first.splits():
        assert list(first.samples(split)) == list(second.samples(split))
    counts = Counter(sample.key for split in first.splits() for sample in first.samples(split))
    assert len(counts) == 4
    assert max(counts.values()) == 1
    assert first.provenance() == second.provenance()
    assert first.provenance()["folder"] == "stamps"
    assert all(not list(TuxPaint(stamps, val_share=0.0, test_share=0.0).samples(split)) for split in ("val", "test"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 0}, "side"),
        ({"test_share": 0.6, "val_share": 0.4}, "test_share"),
        ({"sample_rate_hz": 0}, "sample_rate_hz"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuxPaint(**settings)  # type: ignore[arg-type]


def test_a_folder_without_stamps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no stamp"):
        list(TuxPaint(tmp_path).samples("train"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(TuxPaint(tmp_path / "nowhere").samples("train"))
    with pytest.raises(ValueError, match="no split 'dev'"):
        list(TuxPaint(tmp_path).samples("dev"))


def test_resampling_that_overshoots_is_not_clipped(tmp_path: Path) -> None:
    square = np.sign(np.sin(2 * np.pi * 997 * np.arange(44100) / 44100)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", square, 44100, subtype="FLOAT")
    data, seconds = flac_recording(tmp_path / "x.wav", 16000)
    wave, _ = soundfile.read(io.BytesIO(data))
    assert seconds == 1.0
    assert 0.99 < np.abs(wave).max() <= 1.0
    assert (np.abs(wave) > 0.999).mean() < 0.01, "one peak touches full scale, flat tops do not"
    soundfile.write(tmp_path / "none.wav", np.zeros(0, dtype=np.float32), 44100)
    with pytest.raises(RecordingRefused, match="empty"):
        flac_recording(tmp_path / "none.wav", 16000)


@pytest.mark.assets
@pytest.mark.slow
def test_the_real_stamps_share_nothing_over_the_split() -> None:
    try:
        assets.fetch("tuxpaint-stamps")
    except ConnectionError:
        pytest.skip("the asset tuxpaint-stamps cannot be fetched here")
    source = TuxPaint()
    stamps = {stamp.name: stamp for stamp in source._stamps}
    split_of = source._split_of
    assert len(stamps) == 785
    assert Counter(split_of.values()) == {"train": 555, "val": 50, "test": 180}

    def shared(split: str) -> set[object]:
        own = [stamp for name, stamp in stamps.items() if split_of[name] == split]
        captions = {(language, plain_text(text)) for stamp in own for language, text in stamp.captions.items()}
        sounds = {path.read_bytes() for stamp in own for path in [*stamp.speech.values(), stamp.sound] if path}
        return captions | sounds | {stamp.picture_hash for stamp in own}

    train, val, test = map(shared, source.splits())
    assert not train & test
    assert not train & val
    assert not val & test
    speakers = Counter(language for stamp in stamps.values() for language in stamp.speech)
    assert (speakers["fr"], speakers["ro"], speakers["ru"], speakers["en"]) == (767, 760, 760, 65)
