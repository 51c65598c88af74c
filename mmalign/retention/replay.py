"""Experience replay: a memory of past samples, mixed into every later stage."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mmalign.batch import Batch, Embeddings
from mmalign.data.config import ShardData
from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan
from mmalign.retention.memory import Memory
from mmalign.retention.policies import Policy
from mmalign.retention.text_replay import TextReplay


class Replay(Retention):
    """Replaces `share` of each batch by samples of earlier stages, and keeps the losses of these stages active.

    Loss: that of the stages in the memory, on the replayed rows (and on every row that has both modalities). The batch
    stays as large as it was, so that a run with replay sees as many samples a step as one without.

    Stored: up to `capacity` samples in at most `capacity_bytes`, compressed as they stood in the shards, as a shard
    directory under RUN/retention/NAME; in the checkpoint an index of 56 bytes per sample, within a stage also of as
    many candidates and one batch. While a stage ends, two generations lie on the disk. See Memory and, for who
    is kept, the policies. With `text`, also see TextReplay.

    Cost: no more rows a step; reading and decoding as for new samples; a hash of 0.003 ms per new row, and with
    `negatives: own` each contrastive loss is computed on two blocks.

    Paper: Rolnick et al. 2019, "Experience Replay for Continual Learning", NeurIPS; Chaudhry et al. 2019, "On Tiny
    Episodic Memories in Continual Learning", arXiv:1902.10486.

    Example:
        retention:
          replay:
            class_path: mmalign.retention.Replay
            init_args:
              share: 0.25
              capacity: 2000
              policy: {class_path: mmalign.retention.BalancedByStage}
              text: {shards: shards/docstrings, modalities: {text: txt}}
    """

    def __init__(
        self,
        share: float = 0.25,
        capacity: int = 2000,
        capacity_bytes: int = 2**30,
        policy: Policy | None = None,
        negatives: Literal["own", "shared"] = "own",
        past_losses: float = 1.0,
        text: ShardData | None = None,
        text_share: float = 0.25,
        text_weight: float = 1.0,
    ) -> None:
        """
        Args:
            share: of the global batch that replayed samples take, from the second stage on.
            capacity: samples in the memory, of all stages together.
            capacity_bytes: of the memory on disk.
            policy: which samples stay; None means Uniform().
            negatives: "own": replayed rows are contrasted with each other, new rows with each other; "shared": all with
                all. Own negatives keep the old task as it was; with shared ones the data sets also learn to be told
                apart, which needs no alignment.
            past_losses: factor on the weights of the losses of earlier stages; 0 leaves those out that the stage does
                not have itself. A loss is a mean over its rows: with 1 the memory counts as much as all new rows,
                whatever its share; with share / (1 - share) each row counts the same.
            text: plain text to mix in as well; None means none.
            text_share, text_weight: its share of the batch, and the weight of its next-token loss.

        Raises:
            ValueError: shares or capacities make no sense.
        """
        if not 0 < share < 1:
            raise ValueError(f"share: is {share}, must be above 0 and below 1")
        if text is not None and not 0 < text_share < 1 - share:
            raise ValueError(
                f"text_share: is {text_share}, must be above 0 and below {1 - share:g}: with the share of {share} "
                "something of the batch must be left for new samples"
            )
        self.share = share
        self.negatives = negatives
        self.past_losses = past_losses
        self.memory = Memory(capacity, capacity_bytes, policy)
        self.text = None if text is None else TextReplay(text, text_share, text_weight)

    @property
    def acts_at_once(self) -> bool:
        return self.text is not None

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        if self.text is not None:
            self.text.name = self._name
            self.text.prepare(plan, model)
        parts = self.memory.data(self.folder(plan))
        total = sum(count for _, count in parts.values())
        for part, (data, count) in parts.items():
            plan.replay[f"{self._name}.{part}"] = data, self.share * count / total
        if not parts:
            return
        plan.separate_replay |= self.negatives == "own"
        stages = {part.stage for part in self.memory.parts} if self.past_losses else set()
        for past in (past for past in plan.past if past.index in stages):
            for loss, weight in past.losses.items():
                if loss not in plan.losses:
                    plan.pairs |= {loss: past.pairs[loss]} if loss in past.pairs else {}
                    plan.losses[loss] = self.past_losses * weight

    def reaches(self, plan: StagePlan, model: Aligner) -> set[str]:
        return set() if self.text is None else self.text.reaches(plan, model)

    def begin(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        self.memory.begin(plan, model, self.folder(plan))

    def penalty(self, model: Aligner, batch: Batch, embeddings: Embeddings) -> dict[str, Tensor]:
        return {} if self.text is None else self.text.penalty(model, batch, embeddings)

    def after_step(self, plan: StagePlan, model: Aligner, batch: Batch, embeddings: Embeddings) -> None:
        self.memory.observe(plan, batch, embeddings)

    def end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        self.memory.commit(plan, model)

    def folder(self, plan: StagePlan) -> Path:
        return plan.directory / "retention" / self._name

    @property
    def _name(self) -> str:
        return self.name or "replay"

    def bytes_stored(self) -> int:
        return self.memory.bytes_stored()

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state.get("memory", {}))
