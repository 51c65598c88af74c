"""The log-mel front end, in torch: runs where the tower runs, and every setting is explicit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmalign.checks import at_least, positive

Scale = Literal["slaney", "htk"]
Area = Literal["hertz", "sum", "peak"]
Sides = Literal["hertz", "mel"]

_BLOCK_FRAMES = 2048
"""Frames that go through all steps together on a CPU: what is between two steps then stays in its cache."""

_BAND_BINS = 16
"""Mel bins that are summed together on a CPU: with few, few frequencies reach them, and what is 0 need not be added."""


def hertz_to_mel(hertz: np.ndarray, scale: Scale) -> np.ndarray:
    """Mel of frequencies: "htk" is logarithmic throughout, "slaney" (the Auditory Toolbox) linear below 1 kHz."""
    hertz = np.asarray(hertz, dtype=np.float64)
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    above = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) * 27.0 / np.log(6.4)
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, above)


def mel_to_hertz(mel: np.ndarray, scale: Scale) -> np.ndarray:
    """Inverse of `hertz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp(np.log(6.4) / 27.0 * (np.maximum(mel, 15.0) - 15.0)))


def mel_filters(
    sample_rate_hz: int,
    window: int,
    bins: int,
    f_min_hz: float,
    f_max_hz: float,
    scale: Scale = "slaney",
    area: Area = "hertz",
    sides: Sides = "hertz",
) -> np.ndarray:
    """Triangular filters over the bins of a power spectrum, [bins, window // 2 + 1], float64.

    Args:
        area: "hertz" divides a filter by its half width in hertz (librosa's norm="slaney"), "sum" makes its weights sum
            to one, "peak" leaves its peak at one.
        sides: whether a triangle's sides are straight in hertz (librosa) or in mel (Essentia's "warping").

    Raises:
        ValueError: the range is empty or reaches above half the sample rate.
    """
    if not 0 <= f_min_hz < f_max_hz <= sample_rate_hz / 2:
        raise ValueError(f"mel range {f_min_hz} to {f_max_hz} Hz must lie within 0 to {sample_rate_hz / 2} Hz")
    frequencies = np.arange(window // 2 + 1) * (sample_rate_hz / window)
    lowest, highest = hertz_to_mel(np.array([f_min_hz, f_max_hz]), scale)
    mels = np.linspace(lowest, highest, bins + 2)
    corners_hz = mel_to_hertz(mels, scale)
    at, corners = (frequencies, corners_hz) if sides == "hertz" else (hertz_to_mel(frequencies, scale), mels)
    low, peak, high = (corners[i : bins + i, None] for i in range(3))
    filters = np.maximum(0.0, np.minimum((at - low) / (peak - low), (high - at) / (high - peak)))
    if area == "hertz":
        filters *= 2.0 / (corners_hz[2:] - corners_hz[:-2])[:, None]
    elif area == "sum":
        filters /= np.maximum(filters.sum(1, keepdims=True), 1e-12)
    return filters


@dataclass(frozen=True)
class MelSettings:
    """Everything that decides a log-mel spectrogram.

    Attributes:
        window: samples of the Hann window and of the Fourier transform.
        hop: samples from one frame to the next.
        f_max_hz: None is half the sample rate.
        power: exponent of the magnitude spectrum; 2 is power.
        log_offset, mean, std: a frame is (ln(mel + log_offset) - mean) / std.
        scale, area, sides: see `mel_filters`.
        periodic: whether the Hann window is the periodic one (librosa) or the symmetric one (Essentia).
    """

    sample_rate_hz: int = 16000
    window: int = 400
    hop: int = 160
    bins: int = 64
    f_min_hz: float = 0.0
    f_max_hz: float | None = None
    power: float = 2.0
    log_offset: float = 1e-6
    mean: float = -7.0
    std: float = 4.0
    scale: Scale = "slaney"
    area: Area = "hertz"
    sides: Sides = "hertz"
    periodic: bool = True

    def __post_init__(self) -> None:
        at_least(1, sample_rate_hz=self.sample_rate_hz, window=self.window, hop=self.hop, bins=self.bins)
        positive(power=self.power, log_offset=self.log_offset, std=self.std)

    @property
    def silence(self) -> float:
        """What a frame of silence becomes: the value to pad with."""
        return (math.log(self.log_offset) - self.mean) / self.std

    @property
    def hertz(self) -> float:
        """Frames a second."""
        return self.sample_rate_hz / self.hop


def _band(filters: np.ndarray, bins: slice) -> tuple[slice, slice]:
    """Which columns of [bins, frequencies] reach these bins, and the bins."""
    columns = np.flatnonzero(filters[bins].any(0))
    return (slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1)), bins


class LogMel(nn.Module):
    """Waveforms -> normalised log-mel frames.

    Frame i is centred on sample i * hop, with zeros beyond both ends of a clip (librosa's center=True,
    pad_mode="constant"); n samples give 1 + n // hop frames. Frames of a clip don't depend on the padding behind it.

    Attributes:
        bands: which rows of `weights` are not 0 for which mel bins; on a CPU these alone are multiplied.

    Raises:
        ValueError: the mel range doesn't fit the sample rate.
    """

    weights: Tensor
    hann: Tensor

    def __init__(self, settings: MelSettings) -> None:
        super().__init__()
        self.settings = s = settings
        f_max_hz = s.sample_rate_hz / 2 if s.f_max_hz is None else s.f_max_hz
        filters = mel_filters(s.sample_rate_hz, s.window, s.bins, s.f_min_hz, f_max_hz, s.scale, s.area, s.sides)
        if s.power == 2:  # no square root is needed: the filters add the squares of real and imaginary part
            filters = filters.repeat(2, axis=1)
        # Settings decide these completely, so checkpoints need not carry them.
        self.register_buffer("weights", torch.from_numpy(filters.T.copy()).float(), persistent=False)
        self.bands = [_band(filters, slice(start, start + _BAND_BINS)) for start in range(0, s.bins, _BAND_BINS)]
        hann = torch.hann_window(s.window, periodic=s.periodic, dtype=torch.float64)
        self.register_buffer("hann", hann.float(), persistent=False)

    def power_mel(self, waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames bins"]:
        """Mel spectrum before the logarithm."""
        return self._mel(waveforms, lambda mel: mel)

    def _log(self, mel: Tensor) -> Tensor:
        mel.add_(self.settings.log_offset).log_()
        if self.settings.mean != 0:
            mel.sub_(self.settings.mean)
        return mel if self.settings.std == 1 else mel.div_(self.settings.std)

    def _mel(
        self, waveforms: Float[Tensor, "batch samples"], finish: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch frames bins"]:
        """Mel spectra, finished in place."""
        window, hop = self.settings.window, self.settings.hop
        clips, samples = waveforms.shape
        count = 1 + samples // hop
        if waveforms.device.type != "cpu" or (waveforms.requires_grad and torch.is_grad_enabled()):
            padded = nn.functional.pad(waveforms, (window // 2, window - window // 2))
            return finish(self._power(padded.unfold(1, window, hop)[:, :count] * self.hann) @ self.weights)
        mel = self.weights.new_empty(clips, count, self.settings.bins)
        bands = [(rows.start, self.weights[rows, bins].contiguous()) for rows, bins in self.bands]
        together, most = min(clips, max(1, _BLOCK_FRAMES // count)), min(count, _BLOCK_FRAMES)
        padded = waveforms.new_zeros(together, samples + window)
        signal, frames = padded.narrow(1, window // 2, samples), padded.unfold(1, window, hop)
        windowed, hann = self.hann.new_empty(together, most, window), self.hann
        for some, theirs in zip(waveforms.split(together), mel.split(together), strict=True):
            rows = len(some)
            signal.narrow(0, 0, rows).copy_(some)
            for start in range(0, count, most):
                length = min(most, count - start)
                block = frames.narrow(0, 0, rows).narrow(1, start, length)
                block = torch.mul(block, hann, out=windowed.narrow(0, 0, rows).narrow(1, 0, length))
                power, into = self._power(block).flatten(0, 1), theirs.narrow(1, start, length)
                sums = into.view(-1, self.settings.bins).split(_BAND_BINS, 1)
                for (first, weights), out in zip(bands, sums, strict=True):
                    torch.mm(power.narrow(1, first, len(weights)), weights, out=out)
                finish(into)
        return mel

    def _power(self, windowed: Float[Tensor, "batch frames window"]) -> Float[Tensor, "batch frames weighted"]:
        """What the rows of `weights` weigh."""
        spectrum = torch.fft.rfft(windowed)
        if self.settings.power == 2:
            return torch.view_as_real(spectrum).flatten(2).square_()
        return spectrum.abs().pow_(self.settings.power)

    def forward(
        self, waveforms: Float[Tensor, "batch samples"], mask: Bool[Tensor, "batch samples"] | None = None
    ) -> tuple[Float[Tensor, "batch frames bins"], Bool[Tensor, "batch frames"]]:
        """Waveforms, and which samples are real -> frames, and which are real; the others hold silence."""
        with torch.autocast(waveforms.device.type, enabled=False):  # a half-precision spectrum overflows
            if mask is not None:
                waveforms = waveforms.masked_fill(~mask, 0.0)
            frames = self._mel(waveforms.float(), self._log)
        if mask is None:
            return frames, torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        samples = mask.sum(1)
        positions = torch.arange(frames.shape[1], device=frames.device)
        real = (positions[None] <= (samples // self.settings.hop)[:, None]) & (samples > 0)[:, None]
        return frames.masked_fill(~real[..., None], self.settings.silence), real
