"""The mel front end against a naive version, and its promises about padding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.encoders.mel import LogMel, MelSettings, hertz_to_mel, mel_filters, mel_to_hertz


def naive_power_mel(wave: np.ndarray, s: MelSettings) -> np.ndarray:
    """Frame by frame and filter by filter, in float64, from the textbook formulas."""
    rate, window, hop, bins, f_max = s.sample_rate_hz, s.window, s.hop, s.bins, s.f_max_hz or s.sample_rate_hz / 2

    def to_mel(f):
        if s.scale == "htk":
            return 2595 * math.log10(1 + f / 700)
        return f / (200 / 3) if f < 1000 else 15 + math.log(f / 1000) / (math.log(6.4) / 27)

    def to_hertz(m):
        if s.scale == "htk":
            return 700 * (10 ** (m / 2595) - 1)
        return m * 200 / 3 if m < 15 else 1000 * math.exp((math.log(6.4) / 27) * (m - 15))

    low, high = to_mel(s.f_min_hz), to_mel(f_max)
    corners = [to_hertz(low + (high - low) * i / (bins + 1)) for i in range(bins + 2)]
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    padded = np.concatenate([np.zeros(window // 2), wave.astype(np.float64), np.zeros(window)])
    result = np.zeros((1 + len(wave) // hop, bins))
    for t in range(len(result)):
        spectrum = np.abs(np.fft.fft(padded[t * hop : t * hop + window] * hann)[: window // 2 + 1]) ** s.power
        for b in range(bins):
            a, c, e = corners[b : b + 3]
            for k, value in enumerate(spectrum):
                f = k * rate / window
                weight = (f - a) / (c - a) if a <= f <= c else (e - f) / (e - c) if c < f <= e else 0.0
                result[t, b] += value * weight * (2 / (e - a) if s.area == "hertz" else 1.0)
    return result


@pytest.mark.parametrize(
    "options",
    [
        {"scale": "slaney", "area": "hertz"},
        {"scale": "htk", "area": "peak", "f_min_hz": 50.0, "f_max_hz": 3000.0},
        {"power": 1.0, "window": 255},
        {"bins": 100, "window": 64},  # more than there are frequencies: some bins get nothing
    ],
)
def test_power_mel_equals_the_naive_version(options):
    s = MelSettings(**{"sample_rate_hz": 8000, "window": 256, "hop": 100, "bins": 20, **options})
    wave = np.random.default_rng(0).normal(0, 0.3, 1234).astype(np.float32)
    expected = naive_power_mel(wave, s)
    found = LogMel(s).power_mel(torch.from_numpy(wave)[None])[0].numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, expected.max())
    assert np.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("bins", [12, 40])
def test_blocks_without_gradient_equal_the_plain_way_with_it(bins, power, monkeypatch):
    waves = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mel = LogMel(MelSettings(window=160, hop=80, bins=bins, power=power))
    plain, _ = mel(waves)
    assert torch.autograd.grad(plain.sum(), waves)[0].abs().min() > 0
    for block in (7, 25, 10_000):  # parts of a clip, two clips, everything
        monkeypatch.setattr("mmalign.encoders.mel._BLOCK_FRAMES", block)
        for some in (waves.detach(), waves.detach()[:1]):
            torch.testing.assert_close(mel(some)[0], plain[: len(some)])
        nothing, _ = mel(waves.detach()[:, :0])
        torch.testing.assert_close(nothing, torch.full_like(nothing, mel.settings.silence))
        with torch.no_grad():
            torch.testing.assert_close(mel(waves)[0], plain)
    torch.testing.assert_close(mel.double()(waves.detach())[0].float(), plain)


@given(st.sampled_from(["slaney", "htk"]), st.lists(st.floats(0, 20000), min_size=1, max_size=9))
def test_mel_scales_invert(scale, hertz):
    assert np.allclose(mel_to_hertz(hertz_to_mel(np.array(hertz), scale), scale), hertz, atol=1e-6)


def test_area_and_sides_do_what_they_say():
    assert np.allclose(mel_filters(44100, 2048, 96, 0.0, 22050.0, "htk", "sum", "mel").sum(1), 1)
    straight, warped = (mel_filters(44100, 8192, 40, 0.0, 22050.0, "htk", "peak", sides) for sides in ("hertz", "mel"))
    assert 1e-3 < np.abs(straight - warped).max() < 0.2  # the same corners, other sides
    assert ((straight > 0) == (warped > 0)).mean() > 0.999


def test_a_range_above_half_the_sample_rate_is_refused():
    with pytest.raises(ValueError, match=r"4000\.0 Hz"):
        LogMel(MelSettings(sample_rate_hz=8000, f_max_hz=5000.0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=5), st.integers(0, 1000))
def test_frames_do_not_depend_on_padding(lengths, garbage_seed):
    mel = LogMel(MelSettings(sample_rate_hz=8000, window=64, hop=25, bins=8))
    generator = torch.Generator().manual_seed(garbage_seed)
    waves = torch.randn(len(lengths), max(1, *lengths), generator=generator)  # beyond its length a row holds garbage
    mask = torch.arange(waves.shape[1])[None] < torch.tensor(lengths)[:, None]
    frames, real = mel(waves, mask)
    for row, length in enumerate(lengths):
        assert real[row].sum() == (1 + length // 25 if length else 0)
        if length:
            alone, _ = mel(waves[row : row + 1, :length])
            torch.testing.assert_close(frames[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)
        assert torch.allclose(frames[row][~real[row]], torch.tensor(mel.settings.silence))


def test_silence_is_what_silence_gives():
    mel = LogMel(MelSettings())
    assert torch.allclose(mel(torch.zeros(1, 1600))[0], torch.tensor(mel.settings.silence), atol=1e-6)
