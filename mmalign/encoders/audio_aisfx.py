"""The sound-effect CNN of AISFX (Ma et al., "Representation learning for the automatic indexing of sound effects
libraries", ISMIR 2022), as a module of our own that takes its weights."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.encoders.audio import WindowedAudio
from mmalign.encoders.mel import MelSettings
from mmalign.encoders.weights import locate

_LARGEST = 9.457798957824707  # of log10(1 + 10^4 mel) over the data sets it was trained on: its features end at 1
AISFX_MEL = MelSettings(
    sample_rate_hz=44100,
    window=2048,
    hop=1024,
    bins=96,
    log_offset=1e-4,
    mean=math.log(1e-4),  # ln(x + 10^-4) - ln(10^-4) = ln(1 + 10^4 x)
    std=math.log(10) * _LARGEST,
    scale="htk",
    area="sum",
    sides="mel",
    periodic=False,
)


class ConvBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm, then max pooling."""

    def __init__(self, channels_in: int, channels: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.pool = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels), pool
        for convolution in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")

    def forward(self, x: Float[Tensor, "windows _ time bins"]) -> Float[Tensor, "windows _ _ _"]:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return nn.functional.max_pool2d(x, self.pool) if self.pool > 1 else x


class AudioAISFX(WindowedAudio):
    """Four convolutional blocks over windows of 100 frames (2.3 s) of a 96-bin log-mel spectrogram; width 512.

    Positions are the network's last time steps (mean over frequency), 12 a window; a window's pooled vector is the
    maximum over them, a clip's the mean over its windows.

    Args:
        weights: name of an asset or path of the published checkpoint; None starts from random weights.
        max_seconds: longer clips are cut.
        gain_db: random gain in training, within ± this.
    """

    def __init__(self, weights: str | None = "aisfx", max_seconds: float = 30.0, gain_db: float = 0.0) -> None:
        positions, window = 12, 100
        super().__init__(AISFX_MEL, max_seconds, gain_db, 512, AISFX_MEL.hertz * positions / window)
        self.window_frames, self.positions = window, positions
        self.conv_block1, self.conv_block2 = ConvBlock(1, 64, 2), ConvBlock(64, 128, 2)
        self.conv_block3, self.conv_block4 = ConvBlock(128, 256, 2), ConvBlock(256, 512, 1)
        if weights is not None:
            self.load_state_dict(read_aisfx(locate(weights)))
        self.to(memory_format=torch.channels_last)

    def embed_windows(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        x = windows.unsqueeze(1)
        for block in self.layers():
            x = block(x)
        sequence = x.mean(3).transpose(1, 2)
        return sequence, sequence.amax(1)

    def layers(self) -> list[nn.Module]:
        return [self.conv_block1, self.conv_block2, self.conv_block3, self.conv_block4]


def read_aisfx(path: Path) -> dict[str, Tensor]:
    """The embedding network's tensors of the published checkpoint, a tuple (state dict, data-set dict).

    The data-set dict holds NumPy integers, so exactly the two NumPy globals that rebuild these are allowed, and the
    class of the dtype they make; everything else stays forbidden.
    """
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    allowed = [np.dtype, type(np.dtype(np.int64)), (scalar, "numpy.core.multiarray.scalar")]
    with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
        state, _ = torch.load(path, map_location="cpu", weights_only=True)
    prefix = "embedding_net."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
