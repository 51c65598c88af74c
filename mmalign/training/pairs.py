"""How many rows of a batch teach: samples that lack a modality are rows, too, and say nothing."""

import warnings
from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmalign.batch import Embeddings
from mmalign.losses.base import Loss
from mmalign.losses.blocks import restrict

BATCHES = 10


class PairWatch:
    """Counts, over the first batches of a stage, the anchors of each loss, and the new rows that are in no pair.

    Nothing is read from the device before `warn`.

    Args:
        stage: its name, for the warning.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.batches = 0
        self.warned = False
        self._totals: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, nn.Module], embeddings: Embeddings, separate_replay: bool) -> None:
        """The batch of all ranks; those after the first ten are left out."""
        if self.batches == BATCHES:
            return
        self.batches += 1
        new, idle = _new_and_idle(losses, embeddings)
        counts = {"new": new.sum(), "idle": idle.sum()}
        contrastive = {name: loss for name, loss in losses.items() if len(set(cast(Loss, loss).pair)) == 2}
        for name, loss in contrastive.items():
            counts[f"loss {name!r}"] = cast(Loss, loss).anchor_count(embeddings)
            if separate_replay and embeddings.replayed is not None:
                replayed = restrict(embeddings, embeddings.replayed)
                counts[f"loss {name!r} among the replayed rows"] = cast(Loss, loss).anchor_count(replayed)
        for name, count in counts.items():
            self._totals[name] = self._totals.get(name, 0) + count.float()

    def warn(self) -> None:
        """Warn once where most new rows are in no pair, or a loss has fewer than 2 anchors a batch in the mean."""
        if self.warned or not self.batches:
            return
        self.warned = True
        means = dict(zip(self._totals, (torch.stack(list(self._totals.values())) / self.batches).tolist(), strict=True))
        new, idle = means.pop("new"), means.pop("idle")
        if 2 * idle > new:
            self._say(f"{idle:.1f} of {new:.1f} new rows a batch are in no pair of any loss: they lack a modality")
        for name, count in means.items():
            # a loss without replayed rows is one that no earlier stage had
            if count < 2 and (count > 0 or "replayed" not in name):
                self._say(f"{name} has {count:.1f} anchors a batch; with fewer than 2 a contrastive loss is 0")

    def _say(self, what: str) -> None:
        warnings.warn(f"stage {self.stage!r}: {what} (mean of {self.batches} batches)", stacklevel=3)


def _new_and_idle(
    losses: Mapping[str, nn.Module], embeddings: Embeddings
) -> tuple[Bool[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """The rows that are neither replayed nor language text; those of them that are in no pair of a loss."""
    nowhere = torch.zeros_like(embeddings.group, dtype=torch.bool)
    new = ~nowhere if embeddings.replayed is None else ~embeddings.replayed
    for likelihoods in embeddings.likelihoods.values():
        new = new & (likelihoods[:, 1] == 0)
    paired = nowhere
    for loss in losses.values():
        a, b = cast(Loss, loss).pair
        if a != b:
            paired = paired | (embeddings.present.get(a, nowhere) & embeddings.present.get(b, nowhere))
    return new, new & ~paired
