"""The LightningModule. The training step fits on a screen; everything else lives in components."""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from mmalign.batch import Batch, Embeddings
from mmalign.losses.base import Loss
from mmalign.losses.blocks import blockwise
from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan
from mmalign.training.chunking import check_chunks, chunked
from mmalign.training.experiment import Runtime, Stage
from mmalign.training.gather import ddp_scale, gather
from mmalign.training.trainable import freeze_all_but, freeze_unreached, frozen_modules


class AlignmentModule(L.LightningModule):
    """Trains an Aligner for one stage.

    Args:
        model, losses: kept from stage to stage.
        retention: the active methods by name.
        stage: its configuration.
        plan: the stage after the retention methods had their say.
        runtime: for the chunk size.
        facts: plain values that every checkpoint carries under "mmalign"; to `total_step` the stage's steps are added.

    Raises:
        ValueError: batches would be cut into chunks that batch normalisation does not allow.
    """

    def __init__(
        self,
        model: Aligner,
        losses: dict[str, Loss],
        retention: dict[str, Retention],
        stage: Stage,
        plan: StagePlan,
        runtime: Runtime,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.losses = nn.ModuleDict(losses)
        self.retention = retention
        self.stage = stage
        self.plan = plan
        self.runtime = runtime
        self.facts = facts
        self.terms: dict[str, Tensor] = {}  # of the last step: this rank's shares
        self.embeddings: Embeddings  # of the last step: all ranks' rows
        freeze_all_but(model, plan.trainable)
        of_losses = (losses[name].reaches() for name in plan.losses)
        of_methods = (method.reaches(plan, model) for method in retention.values())
        freeze_unreached(model, set().union(*of_losses, *of_methods))
        check_chunks(model, runtime.chunk_size, runtime.rows_per_process(plan.batch_size), plan.name)
        for name, loss in self.losses.items():
            loss.requires_grad_(name in plan.losses)

    def training_step(self, batch: Batch, step: int) -> Tensor:
        embeddings = gather(chunked(self.model, batch, self.runtime.chunk_size, self.runtime.recompute))
        terms = {name: weight * self._loss(name, embeddings) for name, weight in self.plan.losses.items()}
        for name, method in self.retention.items():
            weight = 1.0 if self.stage.retention is None else self.stage.retention[name]
            terms |= {key: weight * term for key, term in method.penalty(self.model, batch, embeddings).items()}
        total = torch.stack(list(terms.values())).sum()
        self._stop_unless_finite(total, terms, batch)
        self.terms = {"loss": total.detach()} | {f"loss/{name}": term.detach() for name, term in terms.items()}
        self._batch, self.embeddings = batch, embeddings.map_tensors(lambda tensor: tensor.detach())
        return ddp_scale(total)

    def _loss(self, name: str, embeddings: Embeddings) -> Tensor:
        loss = cast(Loss, self.losses[name])
        if self.plan.separate_replay and embeddings.replayed is not None:
            return blockwise(loss, embeddings, embeddings.replayed.long())
        return loss(embeddings)

    def _stop_unless_finite(self, total: Tensor, terms: dict[str, Tensor], batch: Batch) -> None:
        if torch.isfinite(total):
            return
        bad = [name for name, term in terms.items() if not torch.isfinite(term)]
        raise FloatingPointError(
            f"stage {self.plan.name!r}, step {self.global_step + 1}: {', '.join(bad) or 'the sum of the losses'} "
            f"is not finite; the batch held {', '.join(batch.keys[:16])}{', …' if len(batch) > 16 else ''}. "
            "The last checkpoint is untouched."
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        # Lightning itself lets only bare tensors be copied while the process goes on; pageable memory is waited for
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # whatever is random in a step (dropout, patch dropout) is a function of seed, stage, step and rank
        key = f"{self.plan.seed}/{self.plan.name}/{self.global_step}/{self.global_rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1)

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        super().optimizer_step(*arguments, **keywords)
        # not in on_train_batch_end, which comes only after the callback that saves: a checkpoint would lack the step
        for method in self.retention.values():
            method.after_step(self.plan, self.model, self._batch, self.embeddings)

    def train(self, mode: bool = True) -> "AlignmentModule":
        """Frozen parts stay in eval mode: dropout and batch statistics would change what they compute."""
        super().train(mode)
        if mode:
            for part in frozen_modules(self.model):
                part.eval()
        return self

    def configure_optimizers(self) -> Any:
        parts = {**self.model.components(), **{f"loss.{name}": self.losses[name] for name in self.plan.losses}}
        return self.stage.optimization.build(parts, self.plan.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mmalign"] = {
            **self.facts,
            "total_step": self.facts["total_step"] + self.global_step,
            "stage_step": self.global_step,
            "retention": {name: method.state_dict() for name, method in self.retention.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, method in self.retention.items():
            method.load_state_dict(checkpoint["mmalign"]["retention"].get(name, {}))
