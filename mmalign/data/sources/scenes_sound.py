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


def sound(
    timbres: list[str], pitches_hz: list[float], spans: list[tuple[int, int]], gains: list[float]
) -> NDArray[np.int16]:
    """Two seconds of mono PCM [samples].

    Args:
        spans: first sample of each tone and the one after its last; outside of them there is exact silence.
        gains: peak of each tone, at most 1.
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
    """The longest tone of a timbre and pitch, peak 1, before attack and release."""
    t = np.arange(round(_LONGEST_TONE_SECONDS * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * pitch_hz * t
    if timbre == "flute":
        wave = np.sin(phase) + 0.08 * np.sin(2 * phase)
    elif timbre == "clarinet":
        wave = sum(np.sin(k * phase) / k**0.8 for k in (1, 3, 5))
    elif timbre == "chime":
        wave = sum(a * np.exp(-d * t) * np.sin(k * phase) for k, a, d in ((1, 1, 3), (2.76, 0.7, 5), (5.4, 0.4, 8)))
    elif timbre == "tremolo":
        wave = (0.55 - 0.45 * np.cos(2 * np.pi * 16 * t)) * (np.sin(phase) + 0.35 * np.sin(2 * phase))
    elif timbre == "strings":
        sway = phase + 0.02 * pitch_hz / 6 * np.sin(2 * np.pi * 6 * t)
        wave = sum(np.sin(k * sway) / k for k in (1, 2, 3, 4))
    elif timbre == "buzz":
        wave = sum(np.sin(k * phase + k) / k**0.4 for k in range(1, 7) if k * pitch_hz < SAMPLE_RATE_HZ / 2 - 200)
    elif timbre == "marimba":
        wave = np.exp(-5 * t) * np.sin(phase) + 0.5 * np.exp(-14 * t) * np.sin(3.93 * phase)
    elif timbre == "slide":
        # From a fifth below up to the pitch within 0.15 seconds.
        glide = pitch_hz * (1 - np.exp(-t / 0.05) / 3)
        wave = np.sin(2 * np.pi * np.cumsum(glide) / SAMPLE_RATE_HZ)
    else:
        raise ValueError(f"no timbre {timbre!r}")
    return np.asarray(wave / np.abs(wave).max(), dtype=np.float32)
