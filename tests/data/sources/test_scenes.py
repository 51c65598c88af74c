"""The generated scenes: their ground truth is true, their splits are apart, their bytes are fixed."""

import io
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmalign.data.sample import RawSample
from mmalign.data.shards import build
from mmalign.data.sources.scenes import Scenes
from mmalign.data.sources.scenes_content import (
    COLOURS,
    HELD_OUT,
    PITCHES_HZ,
    PLACES,
    SHAPES,
    TIMBRES,
    Thing,
    draw_contents,
)
from mmalign.data.sources.scenes_picture import COLOURS_RGB, Outline, unit_polygon
from mmalign.data.sources.scenes_sound import sound

WHERE = (
    r"(?:at|in|on) the (?:(?:upper|lower) (?:left|right) corner|(?:upper|lower|left|right) edge|"
    r"(?:top|bottom)(?: left| right)?|left|right|centre|middle)"
)
SPLITS = ("train", "val", "test", "test_compositional")


@pytest.fixture(scope="module")
def scenes() -> list[RawSample]:
    source = Scenes(train=60, val=5, test=5, test_compositional=30, workers=1)
    return [sample for split in source.splits() for sample in source.samples(split)]


def pixels(sample: RawSample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.members["png"])).convert("RGB"), dtype=np.int32)


def test_bytes_do_not_depend_on_the_number_of_processes(monkeypatch):
    monkeypatch.setattr("mmalign.data.sources.scenes._ALONE_BELOW", 0)
    alone = list(Scenes(train=150, workers=1).samples("train"))
    assert list(Scenes(train=150, workers=2).samples("train")) == alone
    assert list(Scenes(train=150, workers=1, seed=1).samples("train")) != alone
    assert [sample.key for sample in alone[:2]] == ["train_0000000", "train_0000001"]


def test_a_build_is_the_same_in_every_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("mmalign.data.sources.scenes._ALONE_BELOW", 0)
    counts = {"train": 70, "val": 3, "test": 3, "test_compositional": 3}
    for workers in (1, 2):
        build(Scenes(**counts, workers=workers), tmp_path / str(workers), samples_per_shard=40)
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "1", tmp_path / "2")
    )
    assert first == second
    assert len([path for path in first if path.suffix == ".tar"]) == 5


def test_a_larger_data_set_begins_with_the_smaller():
    assert list(Scenes(train=20, workers=1).samples("train"))[:10] == list(Scenes(train=10, workers=1).samples("train"))


def test_masks_boxes_and_colours_agree_with_the_pixels(scenes):
    for sample in scenes:
        picture = pixels(sample)
        for thing in sample.metadata["objects"]:
            outline = Outline(**thing["mask"])
            mask = outline.mask(64)
            rows, columns = np.nonzero(mask > 0.1)
            left, top, right, bottom = thing["box"]
            found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert (
                np.abs(np.subtract(found, (left, top, right, bottom))).max() <= 1.25
            )  # a pixel, and the grid of the supersampling
            assert min(left, top) >= 0
            assert max(right, bottom) <= 64
            # The hue inside the mask is that of the named colour, not that of any other.
            inside = picture[outline.mask(64) > 0.99].mean(0)
            distances = {name: np.abs(direction(inside) - direction(rgb)).sum() for name, rgb in COLOURS_RGB.items()}
            assert min(distances, key=distances.get) == thing["colour"]
            centre = ((left + right) / 2 * 3 / 64, (top + bottom) / 2 * 3 / 64)
            assert tuple(int(value) for value in centre) == PLACES[thing["place"]]


def direction(rgb) -> np.ndarray:
    """Hue and saturation without lightness."""
    values = np.asarray(rgb, dtype=float)
    values = values - values.min()
    return values / values.max()


def test_objects_do_not_cover_each_other(scenes):
    for sample in scenes:
        masks = [Outline(**thing["mask"]).mask(64) for thing in sample.metadata["objects"]]
        assert np.sum(masks, axis=0).max() <= 1


def test_sounds_start_and_end_when_the_json_says(scenes):
    for sample in scenes:
        wave, rate_hz = soundfile.read(io.BytesIO(sample.members["flac"]), dtype="int16")
        assert (rate_hz, len(wave)) == (16_000, 32_000)
        heard = np.zeros(len(wave), dtype=bool)
        things = sample.metadata["objects"]
        for thing in things:
            onset, offset = round(thing["onset_seconds"] * rate_hz), round(thing["offset_seconds"] * rate_hz)
            heard[onset:offset] = True
            tone = wave[onset:offset].astype(float)
            assert np.abs(tone[:160]).max() > 50
            assert np.abs(tone[-160:]).max() > 10
            assert np.sqrt(np.mean(tone**2)) > 1000
        assert not wave[~heard].any()
        assert [thing["onset_seconds"] for thing in things] == sorted(thing["onset_seconds"] for thing in things)


@pytest.mark.parametrize("timbre", sorted(set(TIMBRES.values())))
@pytest.mark.parametrize("pitch_hz", sorted(PITCHES_HZ.values()))
def test_the_strongest_frequency_is_the_pitch(timbre, pitch_hz):
    wave = sound([timbre], [pitch_hz], [(8000, 16_000)], [1.0])[12_000:16_000]
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    low = spectrum[: round(1.5 * pitch_hz * len(wave) / 16_000)]
    assert abs(low.argmax() * 16_000 / len(wave) - pitch_hz) < max(12, 0.02 * pitch_hz)
    assert spectrum.argmax() >= low.argmax()


def test_every_timbre_sounds_different():
    spectra = []
    for timbre in TIMBRES.values():
        wave = sound([timbre], [440.0], [(0, 8000)], [1.0])[:8000].astype(float)
        frames = np.abs(np.fft.rfft(wave.reshape(16, 500) * np.hanning(500)))
        spectra.append((frames / np.linalg.norm(frames)).ravel())
    similarity = np.array(spectra) @ np.array(spectra).T
    assert (similarity - np.eye(len(spectra))).max() < 0.95


def test_captions_tell_the_truth(scenes):
    sizes = {"small": "small", "little": "small", "big": "big", "large": "big"}
    columns = {"left": 0, "right": 2}
    rows = {"top": 0, "upper": 0, "bottom": 2, "lower": 2}
    phrase = re.compile(rf"a (\w+) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({WHERE})")
    forms = set()
    for sample in scenes:
        captions = sample.metadata["captions"]["en"]
        assert sample.members["txt"].decode() in captions
        assert len(set(captions)) == len(captions) == 4
        for caption in captions:
            told = []
            for size, colour, shape, where in phrase.findall(caption):
                words = where.split()
                column = next((columns[word] for word in words if word in columns), 1)
                row = next((rows[word] for word in words if word in rows), 1)
                cell_name = next(name for name, cell in PLACES.items() if cell == (column, row))
                told.append(Thing(colour, shape, sizes[size], cell_name))
            form = phrase.sub("X", caption)
            forms.add(re.sub(r"X \w+s\b(?! [fc])", "Xv", form))
            if "comes after" in form:
                told = told[::-1]
            if "comes last" in form:
                told = [*told[1:], told[0]]
            assert " > ".join(map(str, told)) == sample.group, caption
    assert len(forms) >= 15


def test_compositional_test_holds_out_pairs_but_no_single_value():
    contents = {split: draw_contents(split, 400, seed=0) for split in SPLITS}
    seen = {
        split: {(thing.colour, thing.shape) for content in contents[split] for thing in content} for split in SPLITS
    }
    assert seen["test_compositional"] == HELD_OUT
    for split in ("train", "val", "test"):
        assert not seen[split] & HELD_OUT
    assert {colour for colour, _ in seen["train"]} == set(COLOURS) == {colour for colour, _ in HELD_OUT}
    assert {shape for _, shape in seen["train"]} == set(SHAPES) == {shape for _, shape in HELD_OUT}
    # Timbre goes with shape and pitch with colour, one to one, so pairs of timbre and pitch are held out as well.
    assert len(set(TIMBRES.values())) == len(SHAPES)
    assert len(set(PITCHES_HZ.values())) == len(COLOURS)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_content_is_in_two_splits_and_hardly_any_twice_in_a_test(seed):
    contents = {split: draw_contents(split, 3000 if split == "train" else 500, seed) for split in SPLITS}
    for first in SPLITS:
        for second in SPLITS:
            if first != second:
                assert not set(contents[first]) & set(contents[second])
        if first != "train":
            assert len(set(contents[first])) >= 495
    assert not set(draw_contents("train", 3000, seed + 10)) & set(contents["test"])


def test_labels_only_where_they_are_unambiguous(scenes):
    for sample in scenes:
        things = sample.metadata["objects"]
        assert ("shape" in sample.metadata) == ("colour" in sample.metadata) == (len(things) == 1)
        if len(things) == 1:
            assert sample.metadata["shape"] == things[0]["shape"]


def test_any_picture_size():
    sample = next(Scenes(train=1, image_size=160, workers=1).samples("train"))
    assert pixels(sample).shape == (160, 160, 3)
    assert all(value <= 160 for thing in sample.metadata["objects"] for value in thing["box"])


@pytest.mark.parametrize("settings", [{"train": -1}, {"image_size": 4}, {"workers": 0}])
def test_refuses_impossible_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Scenes(**settings)
    assert Scenes(val=0).splits() == ["train", "test", "test_compositional"]
    with pytest.raises(ValueError, match="no split 'val'"):
        next(Scenes(val=0).samples("val"))


def test_shapes_are_of_about_the_same_size():
    for shape in SHAPES:
        corners = unit_polygon(shape)
        assert 0.75 < np.abs(corners).max() < 1.2
