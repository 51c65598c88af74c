"""Who stays in a memory: policies order the candidates, and the first `capacity` of them stay.

An order is all that a policy says. That keeps every promise in one place: the capacity cannot be exceeded, quotas sum
to it, what one group cannot fill goes to the others, and when a byte budget is smaller than the capacity, the last of
the order go first.
"""

from abc import abstractmethod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.batch import Embeddings

ENTRY = np.dtype(
    [
        ("hash", "<u8"),
        ("key", "<u8"),
        ("stage", "<u4"),
        ("source", "<u4"),
        ("modalities", "<u4"),
        ("step", "<u8"),
        ("score", "<f8"),
    ]
)
"""One candidate: `hash` is the keyed hash of data set and key, identity and priority in one; `key` finds it in the
index of the shards where it lies; `stage` first saw it; `source` is the number of its data set; `modalities` has a bit
for each that it has; `step` counts the optimizer steps, over all stages, up to its last sighting; `score` is the
policy's own."""


class Policy:
    """Decides who stays."""

    @abstractmethod
    def order(self, entries: np.ndarray) -> np.ndarray:
        """Indices of `entries` (ENTRY, [entries]), from the one that stays longest to the one that goes first.

        A function of the entries alone, not of their order; hashes are unique and break every tie.
        """

    def score(self, embeddings: Embeddings) -> Float[Tensor, " batch"] | None:
        """A number for every row of a batch (of all ranks), where the policy goes by one."""
        return None


class Uniform(Policy):
    """Every sample of the stream is in the memory with the same probability: the k smallest hashes stay.

    The hash depends on the seed, the data set, the modalities read of it, and the key alone. So the choice does not
    depend on the order of the stream, on how often a sample came, or on the number of workers or ranks; and it needs
    no generator and no count, unlike a reservoir (Vitter 1985, "Random sampling with a reservoir"), of which it is the
    order-free form: bottom-k sampling (Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches", PODC).
    """

    def order(self, entries: np.ndarray) -> np.ndarray:
        return np.argsort(entries["hash"], kind="stable")


class Balanced(Policy):
    """The same quota for every group, and uniform within it; subclasses say what a group is.

    Quotas differ by at most one, and sum to the capacity; what a small group leaves free goes to the others. When a
    group is added, the old ones shrink by their largest hashes.
    """

    @abstractmethod
    def group(self, entries: np.ndarray) -> np.ndarray:
        """The number of each entry's group."""

    def order(self, entries: np.ndarray) -> np.ndarray:
        groups = self.group(entries)
        by_group = np.lexsort((entries["hash"], groups))
        sorted_groups = groups[by_group]
        first = np.r_[True, sorted_groups[1:] != sorted_groups[:-1]] if len(entries) else np.zeros(0, bool)
        starts = np.maximum.accumulate(np.where(first, np.arange(len(entries)), 0))
        place = np.empty(len(entries), np.int64)
        place[by_group] = np.arange(len(entries)) - starts
        # everyone's first, everyone's second, …: cut anywhere, the groups are as equal as they can be
        return np.lexsort((groups, place))


class BalancedByStage(Balanced):
    """A quota for each stage of the curriculum, recomputed when a stage is added.

    Paper: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning", CVPR (equal quotas that
    shrink; here the choice within a quota is uniform).
    """

    def group(self, entries: np.ndarray) -> np.ndarray:
        return entries["stage"]


class BalancedByData(Balanced):
    """A quota for each data set."""

    def group(self, entries: np.ndarray) -> np.ndarray:
        return entries["source"]


class BalancedByModalities(Balanced):
    """A quota for each combination of modalities that a sample has (image with text, audio with text, …)."""

    def group(self, entries: np.ndarray) -> np.ndarray:
        return entries["modalities"]


class Ring(Policy):
    """The samples seen last stay. Within a step of training, the hash decides, so that ranks make no difference."""

    def order(self, entries: np.ndarray) -> np.ndarray:
        return np.lexsort((entries["hash"], -entries["step"].astype(np.int64)))


class HardestK(Policy):
    """The samples with the highest contrastive loss when they were last seen stay.

    A sample's loss is the mean, over the pairs of modalities that it has and both directions, of -log softmax of its
    cosine with its counterpart against the other rows of the batch. It depends on the batch in which the sample came.

    Paper: as a way to choose what to rehearse, Aljundi et al. 2019, "Online Continual Learning with Maximally
    Interfered Retrieval", NeurIPS (which retrieves by interference; here samples are stored by loss).
    """

    def __init__(self, temperature: float = 0.07) -> None:
        """
        Args:
            temperature: divides the cosines.

        Raises:
            ValueError: it is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"HardestK: temperature is {temperature}, must be positive")
        self.temperature = temperature

    def order(self, entries: np.ndarray) -> np.ndarray:
        return np.lexsort((entries["hash"], -entries["score"]))

    def score(self, embeddings: Embeddings) -> Float[Tensor, " batch"]:
        names = sorted(name for name in embeddings.vectors if name != "fused")
        total = torch.zeros(len(embeddings.group), dtype=torch.float64, device=embeddings.group.device)
        count = torch.zeros_like(total)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                rows = (embeddings.present[first] & embeddings.present[second]).nonzero().squeeze(1)
                if len(rows) == 0:
                    continue
                a, b = embeddings.vectors[first][rows].double(), embeddings.vectors[second][rows].double()
                logits = a @ b.T / self.temperature
                own = torch.arange(len(rows), device=rows.device)
                losses = F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(
                    logits.T, own, reduction="none"
                )
                total[rows] += losses / 2
                count[rows] += 1
        # rounded, because sums over rows in another order differ in the last digits
        return (total / count.clamp(min=1)).round(decimals=6)
