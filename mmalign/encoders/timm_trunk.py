"""Any timm model as a trunk: pictures in, a grid of features and a pooled vector out."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.encoders.weights import check_timm_model, layers_in_order, load_in_order, load_tensors, locate


class TimmTrunk(nn.Module):
    """A timm model without its classifier, whatever layout its features come in.

    Attributes:
        width: channels of the pooled vector, and of the grid.
        rows, columns: of the grid. Where a model's head changes the width after pooling (MobileNetV3), the grid is the
            pooled vector alone: 1 × 1.
        config: timm's own record of the model's preprocessing.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool,
        weights: str | None,
        size: tuple[int, int],
        channels: int,
        channels_last: bool,
        options: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        import timm
        from timm.models import get_pretrained_cfg

        if pretrained and weights is not None:
            raise ValueError("give either pretrained=True (timm's own weights) or weights, not both")
        arguments: dict[str, Any] = {
            "in_chans": channels,
            "num_classes": 0,
            "pretrained": pretrained,
            **(options or {}),
        }
        check_timm_model(model)
        config = get_pretrained_cfg(model)
        if config is not None and config.fixed_input_size:
            arguments.setdefault("img_size", size)  # such models make their position embeddings for one size
        try:
            self.model = timm.create_model(model, **arguments)
        except TypeError as error:  # an argument that the model does not have
            raise ValueError(f"options: {list(options or {})} do not all fit {model}: {error}") from None
        self.config: dict[str, Any] = dict(self.model.pretrained_cfg)
        if weights is not None:
            self._load(model, weights, channels, options or {})
        self.channels_last = channels_last
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.is_grid = False
        self.rows = self.columns = 1
        training = self.model.training
        self.eval()
        with torch.no_grad():
            grid, pooled = self._grid(torch.zeros(1, channels, *size))
        self.train(training)
        self.width = pooled.shape[1]
        self.is_grid = grid.shape[-1] == self.width
        if self.is_grid:
            self.rows, self.columns = self._shape(grid, size)

    def _load(self, model: str, weights: str, channels: int, options: dict[str, Any]) -> None:
        """Weights of the model with its classifier and three input channels, as they are published."""
        import timm
        from timm.models import adapt_input_conv

        path = locate(weights)
        full = timm.create_model(model, pretrained=False, **{k: v for k, v in options.items() if k != "img_size"})
        load_in_order(full, load_tensors(path), path)
        state = full.state_dict()
        first = f"{self.config['first_conv']}.weight"
        if channels != 3 and first in state:
            state[first] = adapt_input_conv(channels, state[first])
        own = self.model.state_dict()
        self.model.load_state_dict({name: state[name] for name in own})

    def _grid(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Features as [batch, rows, columns, width] or [batch, length, width], and the model's own pooling of them."""
        features = self.model.forward_features(pictures)
        pooled = self.model.forward_head(features, pre_logits=True)
        if features.ndim == 4:
            last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return features if last else features.permute(0, 2, 3, 1), pooled
        return features[:, getattr(self.model, "num_prefix_tokens", 0) :], pooled

    def _shape(self, grid: Tensor, size: tuple[int, int]) -> tuple[int, int]:
        if grid.ndim == 4:
            return grid.shape[1], grid.shape[2]
        rows = round((grid.shape[1] * size[0] / size[1]) ** 0.5)  # patches are square in every such model
        if rows * (grid.shape[1] // rows) != grid.shape[1]:
            raise ValueError(f"{grid.shape[1]} patches of a picture of {size[0]} × {size[1]} make no grid")
        return rows, grid.shape[1] // rows

    def forward(
        self, pictures: Float[Tensor, "batch channels height width_in"]
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch width"]]:
        """Pictures -> positions row by row, and the pooled vector. With patch dropout in training, only those kept."""
        if self.channels_last:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        grid, pooled = self._grid(pictures)
        if not self.is_grid:
            return pooled.unsqueeze(1), pooled
        return grid.flatten(1, -2), pooled

    def layers(self) -> list[nn.Module]:
        return layers_in_order(self.model)
