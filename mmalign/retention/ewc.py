"""Elastic weight consolidation: weights that mattered may move little."""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.batch import Batch, Embeddings
from mmalign.data.faults import report_faults
from mmalign.data.stream import Stream
from mmalign.model import Aligner
from mmalign.retention import ranks
from mmalign.retention.base import Retention, StagePlan, preprocess_of, tensor_bytes, trainable_state
from mmalign.retention.lora import trained_weights


class EWC(Retention):
    """Online elastic weight consolidation with a diagonal Fisher information.

    Loss: weight / 2 · Σ_i F_i (θ_i − θ*_i)², with θ* the weights at the end of the stage before, as all other methods
    have left them, wherever this one is listed. When a stage ends, F ← decay · F + F_stage. F_stage is the empirical
    Fisher: the mean over `batches` small batches of the squared gradient of the stage's losses, times the batch size
    (near an optimum the gradients of samples are independent with mean 0, so that squaring their mean makes it smaller
    by that factor). A contrastive loss has no gradient of one sample alone.

    Stored: two copies of the trained weights, in memory and in the checkpoint. Cost: one pass over them a step, and
    `batches` forward and backward passes when a stage ends (every rank makes the same ones).

    While LoRA wraps a layer, θ is the weight with its addition, W + alpha / rank · B A, which is made in each step.

    Papers: Kirkpatrick et al. 2017, "Overcoming Catastrophic Forgetting in Neural Networks", PNAS 114(13); the online
    form: Schwarz et al. 2018, "Progress & Compress: A Scalable Framework for Continual Learning", ICML.

    Example:
        retention:
          ewc: {class_path: mmalign.retention.EWC, init_args: {weight: 100.0}}
    """

    def __init__(self, weight: float = 100.0, decay: float = 1.0, batches: int = 32, batch_size: int = 32) -> None:
        """
        Args:
            weight: of the penalty.
            decay: of the Fisher information of earlier stages, each time that a stage ends; in [0, 1].
            batches, batch_size: to estimate the Fisher information with.

        Raises:
            ValueError: a value makes no sense.
        """
        if not 0 <= decay <= 1 or batches < 1 or batch_size < 2:
            raise ValueError(f"EWC: decay {decay}, batches {batches} or batch_size {batch_size} is out of range")
        self.weight = weight
        self.decay = decay
        self.batches = batches
        self.batch_size = batch_size
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def reaches(self, plan: StagePlan, model: Aligner) -> set[str]:
        return set()  # it only holds back what others move

    def penalty(self, model: Aligner, batch: Batch, embeddings: Embeddings) -> dict[str, Tensor]:
        if not self.fisher:
            return {}
        parts = []
        for name, weight in trained_weights(model).items():
            if name in self.fisher:
                if self.fisher[name].device != weight.device:
                    self.fisher[name] = self.fisher[name].to(weight.device)
                    self.anchor[name] = self.anchor[name].to(weight.device)
                parts.append((self.fisher[name] * (weight - self.anchor[name]).square()).sum())
        total = torch.stack(parts).sum() if parts else torch.zeros((), device=embeddings.group.device)
        # every rank has all weights: each returns its share
        return {f"{self.name or 'ewc'}.fisher": self.weight / 2 * total / ranks.world_size()}

    def after_end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        new = self.stage_fisher(plan, model, losses)
        old = {name: self.decay * value for name, value in self.fisher.items()}
        self.fisher = old | {name: value + old[name].to(value) if name in old else value for name, value in new.items()}
        self.anchor |= trainable_state(model)

    def stage_fisher(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> dict[str, Tensor]:
        """The diagonal of the stage's Fisher information, of the parameters that are trained."""
        total_weight = sum(data.weight for data in plan.data.values())
        stream = Stream(
            {name: (data, data.weight / total_weight) for name, data in plan.data.items()},
            preprocess_of(model),
            batch_size=self.batch_size,
            seed=plan.seed,
            stage=f"{plan.name}/fisher",
            steps=self.batches,
            limits=plan.limits,
        )
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
        training = {module: module.training for module in model.modules()}
        model.eval()
        for step in range(self.batches):
            batch = stream[step]
            if ranks.rank() == 0:  # all read the same
                report_faults(batch.faults)
            embeddings = model(batch.to(next(iter(model.parameters())).device))
            total = torch.stack([weight * losses[name](embeddings) for name, weight in plan.losses.items()]).sum()
            gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
            for value, gradient in zip(fisher.values(), gradients, strict=True):
                if gradient is not None:
                    value += gradient.square() * (self.batch_size / self.batches)
        for module, mode in training.items():
            module.training = mode
        return fisher

    def bytes_stored(self) -> int:
        return tensor_bytes(self.fisher) + tensor_bytes(self.anchor)

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": dict(self.fisher), "anchor": dict(self.anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fisher = dict(state.get("fisher", {}))
        self.anchor = dict(state.get("anchor", {}))
