"""SigLIP: for each pair of samples, do they belong together?"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.batch import Embeddings
from mmalign.losses.base import Loss
from mmalign.losses.logit_scale import LogitScale
from mmalign.losses.sigmoid_tiles import sigmoid_contrast
from mmalign.losses.tiles import Positives, aligned_rows


class SigLIP(Loss):
    """Pairwise sigmoid loss between two modalities, exact, in memory linear in the batch.

    Computes 1/n Σ_ij -log sigmoid(±(logit_scale · a_i·b_j + logit_bias)) over the n samples that have both modalities;
    the sign is + where i and j are of the same group, - elsewhere.

    Inputs: unit vectors of `a` and `b`, `present`, `group`; `rows` after gathering over ranks.
    Requirements: both modalities have the same number of channels.
    Cost: three products of [batch, dim] by [dim, batch], backward included; memory for the gradients and a tile.

    Paper: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training.

    Example:
        losses:
          image_text:
            class_path: mmalign.losses.SigLIP
            init_args: {a: image, b: text}
    """

    def __init__(
        self,
        a: str,
        b: str,
        initial_logit_scale: float = 10.0,
        initial_logit_bias: float = -10.0,
        max_logit_scale: float = 100.0,
    ) -> None:
        """
        Args:
            a, b: names of modalities, or "fused", into which the other one goes as well (see Fusion).
            initial_logit_scale: multiplies similarities at the start.
            initial_logit_bias: added to them at the start; low, because most pairs are negatives.
            max_logit_scale: bound of the learned factor.

        Raises:
            ValueError: the scale is not in (0, max_logit_scale].
        """
        super().__init__()
        self.pair = (a, b)
        self.scale = LogitScale(initial_logit_scale, max_logit_scale)
        self.logit_bias = nn.Parameter(torch.tensor(initial_logit_bias))

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.scale()

    def forward(self, embeddings: Embeddings) -> Float[Tensor, ""]:
        rows = aligned_rows(embeddings, *self.pair)
        positives = Positives.of(rows.group, rows.start, rows.stop)
        anchors = rows.a[rows.start : rows.stop]
        return sigmoid_contrast(anchors, rows.b, self.logit_scale, self.logit_bias, positives, 1 / rows.count)
