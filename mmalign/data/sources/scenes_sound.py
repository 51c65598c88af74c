"""Sounding a scene: each object a short tone with a timbre of its own, silence between."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
DURATION_SECONDS = 2.0
_LONGEST_TONE_SECONDS = 0.6
_ATTACK_SECONDS = {"flute": 0.03, "clarinet": 0.012, "strings": 0.06, "buzz": 0.01, "slide": 0.03}
_STRUCK_ATTACK_SECONDS = 0.002
_RELEASE_SECONDS = 0.03
_TONE_RMS = 0.25


def sound(
    timbres: list[str], pitches_hz: list[float], spans: list[tuple[int, int]], gains: list[float]
) -> NDArray[np.int16]:
    """Two seconds of mono PCM [samples].

    Args:
        spans: first sample of each tone and the one after its last; outside of them there is exact silence.
        gains: loudness of each tone, at most 1.
    """
    wave = np.zeros(round(DURATION_SECONDS * SAMPLE_RATE_HZ), dtype=np.float32)
    for timbre, pitch_hz, (onset, offset), gain in zip(timbres, pitches_hz, spans, gains, strict=True):
        length = offset - onset
        wave[onset:offset] += gain * _tone(timbre, pitch_hz)[:length] * _envelope(timbre, length)
    return np.round(np.clip(wave, -1, 1) * 32_767).astype(np.int16)


def _envelope(timbre: str, length: int) -> NDArray[np.float32]:
    """Rises and falls without a click; half a step off zero, so that the first and last sample belong to the tone."""
    seconds = (np.arange(length, dtype=np.float32) + 0.5) / SAMPLE_RATE_HZ
    rise = np.minimum(seconds / _ATTACK_SECONDS.get(timbre, _STRUCK_ATTACK_SECONDS), 1)
    fall = np.minimum(seconds[::-1] / _RELEASE_SECONDS, 1)
    return rise * fall


@cache
def _tone(timbre: str, pitch_hz: float) -> NDArray[np.float32]:
    """The longest tone of a timbre and pitch, at most 1, before attack and release."""
    t = np.arange(round(_LONGEST_TONE_SECONDS * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * pitch_hz * t
    if timbre == "flute":
        wave = np.sin(phase)
    elif timbre == "clarinet":
        wave = _harmonics(phase, {k: k**-0.8 for k in (1, 3, 5)})
    elif timbre == "chime":
        partials = ((1, 1, 3), (2.76, 0.7, 5), (5.4, 0.4, 8))
        wave = np.sum([gain * np.exp(-decay * t) * np.sin(k * phase) for k, gain, decay in partials], axis=0)
    elif timbre == "tremolo":
        wave = (0.55 - 0.45 * np.cos(2 * np.pi * 12 * t)) * _harmonics(phase, {1: 1.0, 2: 0.4})
    elif timbre == "strings":
        sway = phase + 0.02 * pitch_hz / 6 * np.sin(2 * np.pi * 6 * t)
        wave = _harmonics(sway, {k: 1 / k for k in (1, 2, 3, 4)})
    elif timbre == "buzz":
        wave = _harmonics(phase, {k: k**-0.4 for k in range(1, 7) if k * pitch_hz < SAMPLE_RATE_HZ / 2 - 200})
    elif timbre == "marimba":
        wave = np.exp(-5 * t) * np.sin(phase) + 0.5 * np.exp(-14 * t) * np.sin(3.93 * phase)
    elif timbre == "slide":  # from an octave below up to the pitch
        glide_hz = pitch_hz * (1 - 0.5 * np.exp(-t / 0.08))
        wave = np.sin(2 * np.pi * np.cumsum(glide_hz) / SAMPLE_RATE_HZ)
    else:
        raise ValueError(f"no timbre {timbre!r}")
    # About equally loud, unless the peak forbids it.
    level = min(_TONE_RMS / np.sqrt(np.mean(wave**2)), 1 / np.abs(wave).max())
    return np.asarray(level * wave, dtype=np.float32)


def _harmonics(phase: NDArray[np.float64], gains: dict[int, float]) -> NDArray[np.float64]:
    # Phases differ (a golden-angle step), because harmonics in phase make needles, which sound harsh.
    return np.sum([gain * np.sin(k * phase + 2.4 * k) for k, gain in gains.items()], axis=0)
