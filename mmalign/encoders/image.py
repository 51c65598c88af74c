"""Image towers: preprocessing, and any timm model."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.encoders.base import Axis, Encoder, Preprocess
from mmalign.encoders.timm_trunk import TimmTrunk
from mmalign.encoders.weights import check_patch_dropout, no_patch_dropout

Resize = Literal["crop", "squash", "pad"]


@dataclass(frozen=True)
class ImagePreprocess(Preprocess):
    """PIL picture of any mode -> normalised [3, size, size].

    Attributes:
        size: pixels of each side.
        mean, std: of the channels, for values from 0 to 1.
        interpolation: PIL's name: "bilinear", "bicubic", …
        resize_mode: "crop" scales the shorter side to size / crop_fraction and cuts the middle out, "squash" ignores
            the aspect ratio, "pad" scales the longer side to size and pads with the background.
        crop_fraction: share of the scaled picture that "crop" keeps.
        background: colour behind transparent pixels and of the padding.
        scale_min: in training, cut out a random part of at least this share of the area; 1 for none.
        flip: in training, mirror half of the pictures. Not where captions say left and right.
        jitter: in training, change brightness, contrast and saturation by up to this share.
    """

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    resize_mode: Resize = "crop"
    crop_fraction: float = 1.0
    background: tuple[int, int, int] = (255, 255, 255)
    scale_min: float = 1.0
    flip: bool = False
    jitter: float = 0.0

    kind: ClassVar[str] = "image"
    variable_length: ClassVar[bool] = False

    def prepare(self, value: Any, generator: np.random.Generator | None) -> Tensor:
        picture = self._opaque(value)
        if generator is None or self.scale_min >= 1:
            picture = self._resize(picture)
        else:
            picture = self._random_part(picture, generator)
        if generator is not None:
            picture = self._recolour(picture, generator)
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)
        mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous()

    def _opaque(self, picture: Any) -> Any:
        from PIL import Image

        if picture.mode.startswith("I"):  # 16 bits; PIL's own conversion would clip instead of scaling
            picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            behind = Image.new("RGBA", picture.size, (*self.background, 255))
            picture = Image.alpha_composite(behind, picture)
        return picture.convert("RGB")

    @property
    def _filter(self) -> Any:
        from PIL import Image

        return Image.Resampling[self.interpolation.upper()]

    def _resize(self, picture: Any) -> Any:
        from PIL import Image

        size, (width, height) = self.size, picture.size
        if self.resize_mode == "squash":
            return picture.resize((size, size), self._filter)
        if self.resize_mode == "crop":
            short = math.floor(size / self.crop_fraction)
            wide = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
            scaled = picture.resize(wide, self._filter)
            left, top = (round((side - size) / 2) for side in wide)
            return scaled.crop((left, top, left + size, top + size))
        scale = size / max(width, height)
        narrow = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = Image.new("RGB", (size, size), self.background)
        canvas.paste(picture.resize(narrow, self._filter), ((size - narrow[0]) // 2, (size - narrow[1]) // 2))
        return canvas

    def _random_part(self, picture: Any, generator: np.random.Generator) -> Any:
        """A part of random area and aspect ratio (3:4 to 4:3), cut and scaled in one pass."""
        width, height = picture.size
        for _ in range(10):
            area = generator.uniform(self.scale_min, 1) * width * height
            ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= width and h <= height:
                left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
                box = (left, top, min(left + w, width), min(top + h, height))
                return picture.resize((self.size, self.size), self._filter, box=box)
        return self._resize(picture)

    def _recolour(self, picture: Any, generator: np.random.Generator) -> Any:
        from PIL import Image, ImageEnhance

        if self.flip and generator.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.jitter > 0:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                picture = change(picture).enhance(generator.uniform(1 - self.jitter, 1 + self.jitter))
        return picture


class ImageTimm(Encoder):
    """Any timm model; its sequence is the last feature map or the patches, `pooled` the model's own pooling.

    Args:
        model: timm's name.
        pretrained: load timm's own weights.
        weights: name of an asset or path of a checkpoint instead; tensors under other names are taken in their order.
        size: pixels of a side; None is what the model was made for.
        mean, std: of the preprocessing; None is what timm states.
        resize_mode, scale_min, flip, jitter: see `ImagePreprocess`.
        patch_dropout: share of patches left out in training (transformers only; arXiv:2212.00794).
        channels_last: memory layout that suits convolutions.
        options: further arguments of the timm model.

    Raises:
        ValueError: timm has no such model, or it cannot drop patches.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool = False,
        weights: str | None = None,
        size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        resize_mode: Resize = "crop",
        scale_min: float = 1.0,
        flip: bool = False,
        jitter: float = 0.0,
        patch_dropout: float = 0.0,
        channels_last: bool = True,
        options: dict[str, Any] | None = None,
    ) -> None:
        from timm.models import get_pretrained_cfg

        options = {**(options or {}), **({"patch_drop_rate": patch_dropout} if patch_dropout else {})}
        if size is None:
            config = get_pretrained_cfg(model)
            size = 224 if config is None else config.input_size[-1]
        try:
            trunk = TimmTrunk(model, pretrained, weights, (size, size), 3, channels_last, options)
        except ValueError as error:
            raise (no_patch_dropout(model) if "argument 'patch_drop_rate'" in str(error) else error) from None
        if patch_dropout:
            check_patch_dropout(trunk, model)
        stated = trunk.config
        preprocess = ImagePreprocess(
            size=size,
            mean=mean or tuple(stated["mean"]),
            std=std or tuple(stated["std"]),
            interpolation=stated["interpolation"],
            resize_mode=resize_mode,
            crop_fraction=stated["crop_pct"] if size == stated["input_size"][-1] else 1.0,
            scale_min=scale_min,
            flip=flip,
            jitter=jitter,
        )
        axis = Axis("patches", rows=trunk.rows, columns=trunk.columns)
        super().__init__(preprocess=preprocess, width=trunk.width, axis=axis)
        self.trunk = trunk

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        sequence, pooled = self.trunk(values)
        return Tokens(sequence, torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device), pooled)

    def layers(self) -> list[nn.Module]:
        return self.trunk.layers()
