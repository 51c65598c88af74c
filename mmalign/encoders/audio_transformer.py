"""A small transformer over log-mel frames, cheap enough to train from nothing on a CPU."""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.checks import at_least, positive
from mmalign.encoders.audio import AudioEncoder
from mmalign.encoders.mel import MelSettings
from mmalign.encoders.transformer import Transformer, check_sizes


class AudioTransformer(AudioEncoder):
    """Patches of `patch_frames` whole frames -> linear -> transformer with padding masked -> mean over real patches.

    A patch is real if its first frame is; frames behind a clip's end hold silence, so neither neighbours nor padding
    change a clip's embedding.

    Args:
        width, depth, heads: of the transformer.
        patch_frames: frames per position: 4 frames of 10 ms give 25 positions a second.
        mel: the front end.
        mlp_ratio: width of the perceptrons over that of the transformer.
        dropout: in attention and perceptrons.
        max_seconds: longer clips are cut.
        gain_db: random gain in training, within ± this.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 3,
        heads: int = 3,
        patch_frames: int = 4,
        mel: MelSettings = MelSettings(),  # noqa: B008 (frozen)
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        max_seconds: float = 30.0,
        gain_db: float = 0.0,
    ) -> None:
        check_sizes(width, depth, heads, mlp_ratio)
        at_least(1, patch_frames=patch_frames)
        positive(max_seconds=max_seconds)
        super().__init__(mel, max_seconds, gain_db, width, mel.hertz / patch_frames)
        self.patch_frames = patch_frames
        self.patch = nn.Linear(patch_frames * mel.bins, width)
        self.transformer = Transformer(width, depth, heads, mlp_ratio, dropout)

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        frames, real = self.mel(values, mask)
        missing = -frames.shape[1] % self.patch_frames
        frames = nn.functional.pad(frames, (0, 0, 0, missing), value=self.mel.settings.silence)
        patches = self.patch(frames.unflatten(1, (-1, self.patch_frames)).flatten(2))
        real = real[:, :: self.patch_frames]
        return Tokens.mean_pooled(self.transformer(patches, real), real)

    def layers(self) -> list[nn.Module]:
        *blocks, last = self.transformer.blocks
        return [self.patch, *blocks, torch.nn.ModuleList([last, self.transformer.norm])]
