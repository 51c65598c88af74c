"""InfoNCE: each sample picks its counterpart out of the batch."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.batch import Embeddings
from mmalign.losses.base import Loss
from mmalign.losses.logit_scale import LogitScale
from mmalign.losses.softmax_tiles import softmax_contrast
from mmalign.losses.tiles import AlignedRows, Positives, aligned_rows


class InfoNCE(Loss):
    """Symmetric InfoNCE between two modalities, exact, in memory linear in the batch.

    Computes ½ (a→b + b→a). a→b is the mean over anchors i of the mean over their positives p of
    -log softmax_j(logit_scale · a_i·b_j)[p]. j runs over all samples that have both modalities; positives are the
    samples of i's group, i itself among them, and their mean stands outside the logarithm. When no group repeats this
    is CLIP's loss.

    Inputs: unit vectors of `a` and `b`, `present`, `group`; `rows` after gathering over ranks.
    Requirements: both modalities have the same number of channels. A batch of one sample teaches nothing.
    Cost: three products of [batch, dim] by [dim, batch], backward included, up to 4,096 rows on a CPU and 8,192 on a
    GPU, and up to four beyond; memory for the gradients and at most 64 MiB of similarities on a CPU, 256 on a GPU,
    of each head, and twice that on several ranks.

    Papers: van den Oord et al. 2018, Representation Learning with Contrastive Predictive Coding; Radford et al. 2021,
    Learning Transferable Visual Models From Natural Language Supervision; for several positives Khosla et al. 2020,
    Supervised Contrastive Learning, equation 2.

    Example:
        losses:
          image_text:
            class_path: mmalign.losses.InfoNCE
            init_args: {a: image, b: text, initial_temperature: 0.07}
    """

    def __init__(
        self,
        a: str,
        b: str,
        initial_temperature: float = 0.07,
        max_logit_scale: float = 100.0,
        learn_scale: bool = True,
        heads: int = 1,
    ) -> None:
        """
        Args:
            a, b: names of modalities, or "fused", into which the other one goes as well (see Fusion).
            initial_temperature: divides similarities at the start; 1 / logit_scale.
            max_logit_scale: bound of the learned factor.
            learn_scale: False keeps the temperature as it is.
            heads: equal parts of the vectors, each contrasted by itself at unit length; the loss is their mean. For a
                model with as many `projection_heads`.

        Raises:
            ValueError: the temperature is not positive, or below 1 / max_logit_scale; heads is below 1; in a batch: the
                channels are no multiple of heads.
        """
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads must be at least 1, not {heads}")
        if initial_temperature <= 0:
            raise ValueError(f"initial_temperature must be positive, not {initial_temperature:g}")
        self.pair = (a, b)
        self.heads = heads
        self.scale = LogitScale(1 / initial_temperature, max_logit_scale, learn_scale)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.scale()

    def forward(self, embeddings: Embeddings) -> Float[Tensor, ""]:
        rows = aligned_rows(embeddings, *self.pair)
        if self.heads == 1:
            return self._contrast(rows.a, rows.b, rows)
        channels = rows.a.shape[1]
        if channels % self.heads:
            raise ValueError(f"{self.pair}: {channels} channels cannot be cut into {self.heads} heads")
        parts = [x.unflatten(1, (self.heads, -1)).unbind(1) for x in (rows.a, rows.b)]
        units = ((F.normalize(a, dim=1), F.normalize(b, dim=1)) for a, b in zip(*parts, strict=True))
        return torch.stack([self._contrast(a, b, rows) for a, b in units]).mean()

    def _contrast(self, a: Tensor, b: Tensor, rows: AlignedRows) -> Float[Tensor, ""]:
        start, stop = rows.start, rows.stop
        positives = Positives.of(rows.group, start, stop)
        logit_scale = self.logit_scale
        weight = 0.5 / rows.count
        if (start, stop) == (0, len(rows.group)):  # both directions out of one pass over the tiles
            return softmax_contrast(a, b, logit_scale, positives, weight, weight)
        forth = softmax_contrast(a[start:stop], b, logit_scale, positives, weight, 0.0)
        back = softmax_contrast(b[start:stop], a, logit_scale, positives, weight, 0.0)
        return forth + back
