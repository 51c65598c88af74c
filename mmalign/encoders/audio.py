"""Audio towers: what they share, and any timm backbone over log-mel spectrograms."""

import math
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.batch import Tokens
from mmalign.encoders.base import Axis, Encoder, Preprocess
from mmalign.encoders.mel import LogMel, MelSettings
from mmalign.encoders.timm_trunk import TimmTrunk


@dataclass(frozen=True)
class AudioPreprocess(Preprocess):
    """Waveform at any rate -> mono float32 at `sample_rate_hz`.

    Attributes:
        max_seconds: longer clips are cut: at a random place in training, at their start in evaluation.
        gain_db: in training, a random gain within ± this many decibels.
    """

    sample_rate_hz: int
    max_seconds: float = 30.0
    gain_db: float = 0.0

    kind: ClassVar[str] = "audio"

    def excerpt(self, frames: int, rate_hz: int, generator: np.random.Generator | None) -> tuple[int, int]:
        """At most `max_seconds`, at least one frame; nothing is drawn for a recording that is no longer than that."""
        spare = frames - max(1, math.floor(self.max_seconds * rate_hz))
        if spare <= 0:
            return 0, frames
        start = 0 if generator is None else int(generator.integers(spare + 1))
        return start, frames - spare + start

    def prepare(self, value: Any, generator: np.random.Generator | None) -> Tensor:
        """A tuple (waveform [samples] or [samples, channels], its rate in hertz) -> [samples], at least one.

        A waveform that is not an excerpt yet is cut to one.

        Raises:
            ValueError: the waveform is empty, or holds values that are no numbers.
        """
        waveform, rate_hz = value
        waveform = np.asarray(waveform, dtype=np.float32)
        if waveform.ndim == 2:
            waveform = waveform.mean(1, dtype=np.float32)
        if not waveform.size:
            raise ValueError("the waveform is empty")
        start, stop = self.excerpt(len(waveform), rate_hz, generator)
        waveform = waveform[start:stop]
        if not np.isfinite(waveform).all():
            raise ValueError("the waveform holds values that are not finite")
        if rate_hz != self.sample_rate_hz:
            import soxr

            resampled = soxr.resample(waveform, rate_hz, self.sample_rate_hz)
            waveform = resampled if resampled.size else waveform[:1]  # one sample at a high rate is none at a low one
        if generator is not None and self.gain_db > 0:
            waveform = waveform * np.float32(10 ** (generator.uniform(-self.gain_db, self.gain_db) / 20))
        return torch.from_numpy(np.array(waveform, dtype=np.float32))


class AudioEncoder(Encoder):
    """An encoder whose input is waveforms [batch, samples] and whose front end is `self.mel`."""

    def __init__(self, mel: MelSettings, max_seconds: float, gain_db: float, width: int, hertz: float) -> None:
        preprocess = AudioPreprocess(mel.sample_rate_hz, max_seconds, gain_db)
        super().__init__(preprocess=preprocess, width=width, axis=Axis("frames", hertz=hertz))
        self.mel = LogMel(mel)

    @property
    def spec(self) -> dict[str, Any]:
        return {**super().spec, "mel": asdict(self.mel.settings)}


class WindowedAudio(AudioEncoder):
    """Cuts spectrograms into windows of a fixed size, so that a tower which cannot mask sees nothing but full windows.

    A clip shorter than a window is padded with silence, a longer one gives several windows; `pooled` is their mean,
    weighted by how many of their frames are real. Only windows with real frames are computed.
    """

    window_frames: int
    positions: int

    @abstractmethod
    def embed_windows(
        self, windows: Float[Tensor, "windows frames bins"]
    ) -> tuple[Float[Tensor, "windows positions width"], Float[Tensor, "windows width"]]:
        """Each window by itself -> `self.positions` vectors along time, and a pooled one."""

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        frames, real = self.mel(values, mask)
        batch, size, count = len(frames), self.window_frames, math.ceil(frames.shape[1] / self.window_frames)
        missing = count * size - frames.shape[1]
        frames = torch.nn.functional.pad(frames, (0, 0, 0, missing), value=self.mel.settings.silence)
        real = torch.nn.functional.pad(real, (0, missing)).unflatten(1, (count, size))
        used = real.any(2)
        windows = frames.unflatten(1, (count, size))[used]
        sequence, pooled = self.embed_windows(windows)
        share = real.sum(2).to(pooled.dtype)[used].unsqueeze(1)
        owner = torch.arange(batch, device=used.device)[:, None].expand(-1, count)[used]
        total = pooled.new_zeros(batch, self.width).index_add(0, owner, pooled * share)
        weight = share.new_zeros(batch, 1).index_add(0, owner, share)
        all_windows = sequence.new_zeros(batch, count, self.positions, self.width)
        all_windows[used] = sequence
        starts = torch.arange(self.positions, device=used.device) * size // self.positions
        return Tokens(all_windows.flatten(1, 2), real[:, :, starts].flatten(1), total / weight.clamp(min=1))


class AudioTimm(WindowedAudio):
    """Log-mel spectrograms as one-channel pictures (bins × frames) into any timm model.

    Args:
        backbone: name of a timm model.
        pretrained: load timm's own weights (its first convolution is summed over the colours).
        weights: name of an asset or path of a checkpoint instead.
        mel: the front end.
        window_frames: width of the picture; 200 frames of 10 ms are two seconds.
        max_seconds: longer clips are cut.
        gain_db: random gain in training, within ± this.
        channels_last: memory layout that suits convolutions.
        options: further arguments of the timm model.
    """

    def __init__(
        self,
        backbone: str,
        pretrained: bool = False,
        weights: str | None = None,
        mel: MelSettings = MelSettings(),  # noqa: B008 (frozen)
        window_frames: int = 208,
        max_seconds: float = 30.0,
        gain_db: float = 0.0,
        channels_last: bool = True,
        options: dict[str, Any] | None = None,
    ) -> None:
        size = (mel.bins, window_frames)
        trunk = TimmTrunk(backbone, pretrained, weights, size, 1, channels_last, options)
        super().__init__(mel, max_seconds, gain_db, trunk.width, mel.hertz * trunk.columns / window_frames)
        self.trunk, self.window_frames, self.positions = trunk, window_frames, trunk.columns

    def embed_windows(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        grid, pooled = self.trunk(windows.transpose(1, 2).unsqueeze(1))
        return grid.unflatten(1, (self.trunk.rows, self.trunk.columns)).mean(1), pooled

    def layers(self) -> list[torch.nn.Module]:
        return self.trunk.layers()
