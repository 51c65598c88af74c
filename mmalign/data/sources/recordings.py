"""Recordings as they are stored: one channel, one sample rate, FLAC of 16 bits."""

import io
from pathlib import Path


class RecordingRefused(ValueError):
    """The recording cannot be stored; the message is the reason, without the file's name."""


def flac_recording(path: Path, sample_rate_hz: int) -> tuple[bytes, float]:
    """A sound file as mono FLAC at `sample_rate_hz`, and its duration in seconds.

    Channels are averaged, then resampled with soxr; resampling that overshoots full scale is scaled down, not clipped.

    Raises:
        RecordingRefused: it cannot be decoded, is empty, or is silent (no sample above 0.001 of full scale).
    """
    import numpy as np
    import soundfile
    import soxr

    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise RecordingRefused("cannot be decoded") from error
    mono = samples.mean(axis=1)
    if mono.size == 0:
        raise RecordingRefused("empty")
    if float(np.abs(mono).max()) < 1e-3:
        raise RecordingRefused("silent")
    if rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, rate_hz, sample_rate_hz)
    mono = mono / max(1.0, float(np.abs(mono).max()))
    buffer = io.BytesIO()
    soundfile.write(buffer, mono, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue(), len(mono) / sample_rate_hz
