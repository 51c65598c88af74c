"""Any image tower of open_clip."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.encoders.base import Axis, Encoder
from mmalign.encoders.image import ImagePreprocess, Resize
from mmalign.encoders.weights import check_patch_dropout, layers_in_order, load_open_clip, no_patch_dropout

_RESIZE_MODES: dict[str, Resize] = {"shortest": "crop", "longest": "pad", "squash": "squash"}


class ImageOpenClip(Encoder):
    """The image half of an open_clip model; `pooled` is its embedding, the sequence its patches in the same space.

    Where a tower does not give its patches (ResNets with attention pooling), the sequence is the embedding alone.
    Towers of convolutions run in the channels-last memory layout.

    Args:
        model: a name ("ViT-B-32"), "hf-hub:…" or "local-dir:…".
        pretrained: tag or path of weights; None for random ones (the hub's and a folder's come of themselves).
        patch_dropout: share of patches left out in training; None is what the model states.
        scale_min, flip, jitter: see `ImagePreprocess`.

    Raises:
        ValueError: open_clip has no such model or weights, or the model cannot drop patches.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        patch_dropout: float | None = None,
        scale_min: float = 1.0,
        flip: bool = False,
        jitter: float = 0.0,
    ) -> None:
        import open_clip

        try:
            whole = load_open_clip(model, pretrained, force_patch_dropout=patch_dropout)
        except TypeError as error:
            raise (no_patch_dropout(model) if "patch_drop_rate" in str(error) else error) from None
        stated = open_clip.get_model_preprocess_cfg(whole)
        size = stated["size"]
        visual = whole.visual.train()
        if patch_dropout:
            check_patch_dropout(visual, model)
        if hasattr(visual, "output_tokens"):
            visual.output_tokens = True
        convolutions = sum(isinstance(module, nn.Conv2d) for module in visual.modules())
        channels_last = convolutions > 1  # not the one that cuts a transformer's patches
        if channels_last:
            visual.to(memory_format=torch.channels_last)
        preprocess = ImagePreprocess(
            size=size if isinstance(size, int) else size[0],
            mean=tuple(stated["mean"]),
            std=tuple(stated["std"]),
            interpolation=stated.get("interpolation", "bicubic"),
            resize_mode=_RESIZE_MODES[stated.get("resize_mode", "shortest")],
            scale_min=scale_min,
            flip=flip,
            jitter=jitter,
        )
        sequence, pooled = _probe(visual, preprocess.size)
        side = round(sequence.shape[1] ** 0.5)
        axis = Axis("patches", rows=side, columns=side) if side * side == sequence.shape[1] else Axis("queries")
        super().__init__(preprocess=preprocess, width=pooled.shape[1], axis=axis)
        self.visual = visual
        self.channels_last = channels_last

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        if self.channels_last:
            values = values.contiguous(memory_format=torch.channels_last)
        sequence, pooled = _tokens(self.visual, values)
        return Tokens(sequence, torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device), pooled)

    def layers(self) -> list[nn.Module]:
        parts = layers_in_order(getattr(self.visual, "trunk", self.visual))
        last: list[nn.Module] = [parts.pop()]
        if getattr(self.visual, "proj", None) is not None:
            last.append(nn.ParameterList([self.visual.proj]))
        if hasattr(self.visual, "trunk"):
            last.append(self.visual.head)
        return [*parts, nn.ModuleList(last)]


def _tokens(visual: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures -> (patches, embedding), the same linear map applied to both, so that they share a space."""
    if getattr(visual, "output_tokens", False):
        pooled, sequence = visual(pictures)
        projection = getattr(visual, "proj", None)
        sequence = sequence if projection is None else sequence @ projection
    elif hasattr(visual, "trunk"):
        features = visual.trunk.forward_features(pictures)
        pooled = visual.head(visual.trunk.forward_head(features))
        if features.ndim == 4:
            last = getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC"
            features = (features if last else features.permute(0, 2, 3, 1)).flatten(1, 2)
        else:
            features = features[:, getattr(visual.trunk, "num_prefix_tokens", 0) :]
        pools_itself = any(name == "pool" for name, _ in visual.head.named_children())
        fits = not pools_itself and features.shape[2] == visual.trunk.num_features
        sequence = visual.head(features) if fits else pooled.unsqueeze(1)
    else:
        pooled = visual(pictures)
        sequence = pooled.unsqueeze(1)
    if sequence.shape[2] != pooled.shape[1]:
        sequence = pooled.unsqueeze(1)
    return sequence, pooled


def _probe(visual: Any, size: int) -> tuple[Tensor, Tensor]:
    visual.eval()
    with torch.no_grad():
        result = _tokens(visual, torch.zeros(1, 3, size, size))
    visual.train()
    return result
