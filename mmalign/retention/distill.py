"""Distillation: the model before the stage teaches the model in the stage.

The teacher is a copy of the model, taken when the stage begins, in evaluation mode. It is not stored: a run that goes
on takes it again. It costs the memory of what the stage trains once more, without gradients or optimizer, and a forward
pass of the rows that it is asked about. What the stage leaves as it is, it shares with the model, and with it what the
model remembers of the leading layers of a text tower (`prefix_cache_bytes`).
"""

import copy
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.batch import Batch, Embeddings
from mmalign.data.config import ShardData
from mmalign.encoders.frozen_prefix import FrozenPrefix
from mmalign.model import FUSED, Aligner, components_behind
from mmalign.retention.base import Retention, StagePlan
from mmalign.retention.similarity import distance, pair_divergence, zero


def teacher_of(model: Aligner) -> Aligner:
    """A copy in evaluation mode that shares with the model what is not trained now."""
    shared: dict[int, object] = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    for module in model.modules():
        prefix = getattr(module, "prefix", None)
        if isinstance(prefix, FrozenPrefix):
            shared[id(prefix)] = prefix.of_teacher()
    return copy.deepcopy(model, shared).eval()


def _aligned(plan: StagePlan) -> list[tuple[str, str]]:
    """What earlier stages aligned: pairs of two modalities."""
    return [(a, b) for a, b in plan.past_pairs() if a != b]


class _Distillation(Retention):
    """Holds the teacher, and knows what earlier stages aligned."""

    def __init__(self) -> None:
        self._teacher: Aligner | None = None
        self._pairs: list[tuple[str, str]] = []
        self._chunk_size: int | None = None

    @property
    def _modalities(self) -> list[str]:
        return sorted({name for pair in self._pairs for name in pair})

    def reaches(self, plan: StagePlan, model: Aligner) -> set[str]:
        return {glob for pair in _aligned(plan) for modality in pair for glob in components_behind(modality)}

    def begin(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        self._pairs = _aligned(plan)
        self._teacher = teacher_of(model)
        self._chunk_size = plan.chunk_size

    def end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        self._teacher = None

    @torch.no_grad()
    def _teach(self, batch: Batch, chosen: Bool[Tensor, " batch"]) -> Embeddings:
        """The teacher's view of all ranks' rows that are chosen; the others are absent, and cost nothing.

        It sees as many rows at a time as the model does, so that gradient caching bounds its activations, too.
        """
        from mmalign.training.chunking import chunked
        from mmalign.training.gather import gather

        assert self._teacher is not None
        asked = {name: replace(values, present=values.present & chosen) for name, values in batch.modalities.items()}
        teacher = self._teacher.to(batch.group.device)
        return gather(chunked(teacher, replace(batch, modalities=asked, language=None, faults=[]), self._chunk_size))


class ZSCL(_Distillation):
    """Feature-space distillation on reference data.

    Loss: weight · mean KL(before ‖ now) of softmax(cosine / temperature) over the reference rows of the batch, for
    every pair of modalities that earlier stages aligned, in both directions. Reference rows are those of `reference`,
    and whatever another method replays. They need not be matching pairs.

    Stored: nothing. Cost: the teacher's forward pass of the reference rows, and `share` of each batch.

    Paper: Zheng et al. 2023, "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language
    Models", ICCV. Its other part, the ensemble of weights, is EMA or WiSE here, listed beside this.

    Example:
        retention:
          zscl:
            class_path: mmalign.retention.ZSCL
            init_args: {reference: {shards: shards/reference}, share: 0.25}
    """

    def __init__(
        self,
        reference: ShardData | None = None,
        share: float = 0.25,
        weight: float = 1.0,
        temperature: float = 0.07,
    ) -> None:
        """
        Args:
            reference: data to distil on; None leaves it to what another method replays.
            share: of the batch, for `reference`.
            weight: of the loss.
            temperature: divides the cosines.
        """
        super().__init__()
        self.reference = None if reference is None else replace(reference, replayed=True)
        self.share = share
        self.weight = weight
        self.temperature = temperature

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        if self.reference is not None and plan.past_pairs():
            plan.replay[f"{self.name or 'zscl'}.reference"] = self.reference, self.share

    def penalty(self, model: Aligner, batch: Batch, embeddings: Embeddings) -> dict[str, Tensor]:
        if not self._pairs:
            return {}
        value = zero(embeddings)
        if batch.replayed is not None:
            old = self._teach(batch, batch.replayed)
            value = value + pair_divergence(embeddings, old, self._pairs, self.temperature)
        return {f"{self.name or 'zscl'}.similarity": self.weight * value}


class LwF(_Distillation):
    """Learning without forgetting: the new data should look to the model as before, in the modalities that it knew.

    Loss: weight · mean over the new rows, and over the modalities that earlier stages aligned, of ‖v − v_before‖².
    Stored: nothing. Cost: the teacher's forward pass of the new rows in these modalities.

    Paper: Li and Hoiem 2016, "Learning without Forgetting", ECCV. Its targets are the class scores of old tasks; here
    vectors take their place.

    Example:
        retention:
          lwf: {class_path: mmalign.retention.LwF, init_args: {weight: 1.0}}
    """

    def __init__(self, weight: float = 1.0) -> None:
        """
        Args:
            weight: of the loss.
        """
        super().__init__()
        self.weight = weight

    def penalty(self, model: Aligner, batch: Batch, embeddings: Embeddings) -> dict[str, Tensor]:
        if not self._pairs:
            return {}
        new = torch.ones_like(batch.group, dtype=torch.bool)
        for flags in (batch.replayed, batch.language):
            if flags is not None:
                new = new & ~flags
        # a fused vector is that of other modalities, too, and says nothing about what it was
        modalities = [name for name in self._modalities if name != FUSED]
        known = {name: values for name, values in batch.modalities.items() if name in modalities}
        if not known:
            return {f"{self.name or 'lwf'}.vectors": zero(embeddings)}
        old = self._teach(replace(batch, modalities=known), new)
        value = distance(embeddings, old, modalities)
        return {f"{self.name or 'lwf'}.vectors": self.weight * value}


class TowerDistillation(_Distillation):
    """Holds towers, not the shared space, to what they were: for encoder text towers, whose language no loss protects.

    Loss: weight · mean over the rows of plain text, and over the towers, of 1 − cosine(pooled, pooled before).
    The rows are those of `text`, and those that a TextReplay or a Replay with text mixes in; with `captions`, all.

    Stored: nothing. Cost: the teacher's forward pass of these rows, and `share` of each batch. Captions take no share,
    and are what the new losses pull at: holding them, too, keeps more, also of how other texts lie.

    Paper: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531; of pooled sentence
    embeddings: Reimers and Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using Knowledge
    Distillation", EMNLP.

    Example:
        retention:
          language:
            class_path: mmalign.retention.TowerDistillation
            init_args:
              towers: [text]
              text: {shards: shards/docstrings, modalities: {text: txt}}
    """

    def __init__(
        self,
        towers: list[str],
        text: ShardData | None = None,
        share: float = 0.25,
        weight: float = 1.0,
        captions: bool = False,
    ) -> None:
        """
        Args:
            towers: names of modalities.
            text: plain text to mix in; None leaves that to another method.
            share: of the batch, for `text`.
            weight: of the loss.
            captions: distil on what pairs hold for these towers as well, be they new or replayed.
        """
        super().__init__()
        self.towers = towers
        self.text = None if text is None else replace(text, language=True)
        self.share = share
        self.weight = weight
        self.captions = captions

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        for name in self.towers:
            if name not in model.modalities:
                raise ValueError(f"retention.{self._name}.towers: {name!r} is none of {model.modalities}")
        if self.text is not None:
            plan.replay[f"{self._name}.text"] = self.text, self.share

    def reaches(self, plan: StagePlan, model: Aligner) -> set[str]:
        return {f"encoder.{name}" for name in self.towers}

    @property
    def _name(self) -> str:
        return self.name or "tower_distillation"

    def penalty(self, model: Aligner, batch: Batch, embeddings: Embeddings) -> dict[str, Tensor]:
        total, count = zero(embeddings), 0
        asked = {name: batch.modalities[name] for name in self.towers if name in batch.modalities}
        rows = torch.ones_like(batch.group, dtype=torch.bool) if self.captions else batch.language
        if rows is not None and asked:
            old = self._teach(replace(batch, modalities=asked), rows)
            start, stop = embeddings.rows or (0, len(embeddings.group))
            for name in asked:
                present = old.present[name]
                cosine = F.cosine_similarity(embeddings.pooled[name].float(), old.pooled[name].float(), dim=1)
                total = total + ((1 - cosine) * present[start:stop]).sum()
                count += int(present.sum())
        return {f"{self._name}.pooled": self.weight * total / max(count, 1)}
