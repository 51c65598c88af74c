"""Any text tower of open_clip, with its tokenizer."""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.encoders.base import Axis, Encoder
from mmalign.encoders.text_causal import TextPreprocess
from mmalign.encoders.weights import layers_in_order, load_open_clip


@cache
def load_open_clip_tokenizer(model: str) -> Any:
    """Once per process. The tokenizer of most models is part of open_clip: nothing is downloaded."""
    import open_clip

    return open_clip.get_tokenizer(model)


@dataclass(frozen=True)
class OpenClipTextPreprocess(TextPreprocess):
    """The model's tokenizer; rows always have its context length, because some towers pool at a fixed place.

    Attributes:
        model: open_clip's name.
    """

    model: str

    variable_length: ClassVar[bool] = False

    def encode(self, text: str) -> list[int]:
        return load_open_clip_tokenizer(self.model)([text], context_length=self.max_length)[0].tolist()


class TextOpenClip(Encoder):
    """The text half of an open_clip model; `pooled` is its embedding, the sequence its tokens in the same space.

    Args:
        model: a name ("ViT-B-32"), "hf-hub:…" or "local-dir:…".
        pretrained: tag or path of weights; None for random ones (the hub's and a folder's come of themselves).
    """

    def __init__(self, model: str, pretrained: str | None = None) -> None:
        whole = load_open_clip(model, pretrained, force_custom_text=True)
        text = whole.text.train()
        if hasattr(text, "output_tokens"):
            text.output_tokens = True
        pad_id = getattr(text, "pad_id", None)
        if pad_id is None:
            pad_id = getattr(getattr(text, "config", None), "pad_token_id", None)
        length = int(whole.context_length)
        training, text_mode = text.training, text.eval()
        with torch.no_grad():
            sequence, pooled = _tokens(text_mode, torch.ones(1, length, dtype=torch.long))
        text.train(training)
        preprocess = OpenClipTextPreprocess(length, model)
        super().__init__(preprocess=preprocess, width=pooled.shape[1], axis=Axis("tokens"))
        self.text = text
        self.pad_id = 0 if pad_id is None else int(pad_id)
        self.has_tokens = sequence.shape[1] == length

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        """Ids [batch, context length]; which of them are real follows from the ids."""
        real = self.real_positions(values)
        filled = real.any(1, keepdim=True)
        # A row of padding alone (an absent sample) would be attention over nothing in towers that mask padding.
        sequence, pooled = _tokens(self.text, torch.where(filled, values, torch.ones_like(values)))
        return Tokens(sequence, real if self.has_tokens else filled, pooled)

    def real_positions(
        self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Bool[Tensor, "batch length"]:
        """Up to the last id that is no padding: open_clip's batches have no mask."""
        positions = torch.arange(1, values.shape[1] + 1, device=values.device)
        return positions <= (positions * (values != self.pad_id)).amax(1, keepdim=True)

    def layers(self) -> list[nn.Module]:
        if hasattr(self.text, "token_embedding"):
            parts = layers_in_order(self.text)
        else:
            parts = [*layers_in_order(self.text.transformer), self.text.proj]
        projection = getattr(self.text, "text_projection", None)
        if isinstance(projection, nn.Parameter):
            parts[-1] = nn.ModuleList([parts[-1], nn.ParameterList([projection])])
        return parts


def _tokens(text: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids -> (tokens, embedding), the tower's last linear map applied to both, so that they share a space."""
    if not getattr(text, "output_tokens", False):
        pooled = text(ids)
        return pooled.unsqueeze(1), pooled
    pooled, sequence = text(ids)
    projection = getattr(text, "text_projection", None)
    projection = getattr(text, "proj", None) if projection is None else projection
    if projection is not None:
        sequence = projection(sequence) if isinstance(projection, nn.Module) else sequence @ projection
    fits = sequence.shape[1] == ids.shape[1] and sequence.shape[2] == pooled.shape[1]
    return (sequence if fits else pooled.unsqueeze(1)), pooled
