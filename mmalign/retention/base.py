"""The contract of retention: what a method keeps when a stage ends, and what it adds to the next one."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmalign.batch import Batch, Embeddings
from mmalign.data.config import ShardData
from mmalign.data.faults import Limits
from mmalign.encoders.base import Encoder, Preprocess
from mmalign.model import Aligner


@dataclass
class StagePlan:
    """One stage as the methods see it. `prepare` may change it; that is how a method adds data or freezes parts.

    Attributes:
        index: 1 for the first stage.
        name: from the configuration.
        steps, batch_size: of the stage; the batch is the global one.
        data: what the stage draws from, by name; weights are relative to each other.
        replay: what methods add, by name, each with the share of the batch that it replaces; the rest goes to `data`.
        losses: active losses by name, with weights.
        trainable: by component glob ("encoder.text"): "all", "none", or the number of last layers that are trained.
        seed: of the run.
        directory: the run's folder; a method writes below directory / "retention".
        past, future: the plans of the stages before and after this one, as they were configured.
        initial_pairs: what the checkpoint that the run started from had been trained on: pairs of modalities.
        pairs: the two modalities that each of `losses` aligns, by the loss's name.
        separate_replay: replayed rows and new rows are no negatives of each other.
        chunk_size: how many rows the towers see at a time, a teacher's among them; None means all (see Runtime).
        limits: what counts as an unusable sample.
    """

    index: int
    name: str
    steps: int
    batch_size: int
    data: dict[str, ShardData]
    losses: dict[str, float]
    trainable: dict[str, int | str]
    seed: int
    directory: Path
    past: list["StagePlan"] = field(default_factory=list)
    future: list["StagePlan"] = field(default_factory=list)
    replay: dict[str, tuple[ShardData, float]] = field(default_factory=dict)
    initial_pairs: list[tuple[str, str]] = field(default_factory=list)
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)
    separate_replay: bool = False
    chunk_size: int | None = None
    limits: Limits = field(default_factory=Limits)

    def past_pairs(self) -> list[tuple[str, str]]:
        """The pairs of modalities that were aligned before this stage, each sorted: by stages, or before the run."""
        past = [*self.initial_pairs, *(pair for stage in self.past for pair in stage.pairs.values())]
        return sorted({(min(pair), max(pair)) for pair in past})

    def past_modalities(self) -> list[str]:
        """Those of the past pairs, sorted."""
        return sorted({modality for pair in self.past_pairs() for modality in pair})

    def clone(self) -> "StagePlan":
        """An independent copy, so that a change by a method does not reach the configuration."""
        return copy.deepcopy(self)


class Retention:
    """A method against forgetting. Methods compose: a run has any number of them, by name.

    Order of calls in a stage: `prepare` (before the data is opened), `begin` (before the first step; also after a
    resume, with the model as it stood when the stage began), then per step `penalty`, `after_step`; then `end`, in
    reverse order of the methods, so that the first one listed encloses the others; then `after_end`. All of them are
    deterministic functions of configuration, weights and data, so that a run that was killed repeats them. `prepare`
    may also be called for all stages before the first one begins, to see which towers are never trained.

    Attributes:
        name: under which the configuration lists it; the run sets it.
    """

    name: str = ""

    @property
    def acts_at_once(self) -> bool:
        """Whether the first stage, which has no past, is another one with this method than without it."""
        return True

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        """Change the plan: add replay, freeze components, keep losses of the past active."""

    def reaches(self, plan: StagePlan, model: Aligner) -> set[str]:
        """Globs of the components that `penalty` moves; a stage freezes what neither a loss nor a method reaches.

        It is asked between `prepare` and `begin`. By default it is all, for a method that has a penalty.
        """
        return set() if type(self).penalty is Retention.penalty else {"*"}

    def begin(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        """The model is as it was before the stage; parameters already have their `requires_grad`."""

    def penalty(self, model: Aligner, batch: Batch, embeddings: Embeddings) -> dict[str, Tensor]:
        """Named scalars to add to the loss, weighted already.

        `batch` holds this rank's rows and `embeddings` those of all ranks (see Embeddings.rows); what the ranks return
        adds up to the penalty of the global batch. A term that exists is returned in every step, as 0 where there is
        nothing to add, so that the log has no gaps and the ranks stay in step.
        """
        return {}

    def after_step(self, plan: StagePlan, model: Aligner, batch: Batch, embeddings: Embeddings) -> None:
        """After the optimizer's step; embeddings are detached."""

    def end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        """The stage is over: keep what the next ones need. May replace weights (averaging methods do)."""

    def after_end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        """All methods have ended: weights and layers are what the next stage starts from. May not replace them."""

    def bytes_stored(self) -> int:
        """What the method keeps, on disk and in memory, for the report."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values (loadable with `weights_only=True`)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


def preprocess_of(model: Aligner) -> dict[str, Preprocess]:
    """How each encoder's input is made, by modality."""
    return {name: cast(Encoder, encoder).preprocess for name, encoder in model.encoders.items()}


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Detached clones of the parameters that are trained, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_parameters(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Overwrite the named parameters in place."""
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)
