"""Exponential moving average of the weights."""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.batch import Batch, Embeddings
from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan, load_parameters, tensor_bytes, trainable_state


class EMA(Retention):
    """Averages the trained weights over the steps of a stage; the average replaces them when the stage ends.

    Average: a ← d·a + (1 − d)·θ after every step, with d = min(decay, (1 + t) / (10 + t)) at step t, starting at the
    weights before the stage. The model that trains never sees it. The wider the average (in steps, 1 / (1 − decay)),
    the more of the weights before the stage remains in it.

    Stored: one copy of the trained weights, in memory and in the checkpoints within a stage; nothing between stages.
    Cost: one pass over the trained weights a step.

    List it after LoRA, whose additions it then averages.

    Papers: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim.
    30(4); against forgetting, as the weight ensemble of Zheng et al. 2023, "Preventing Zero-Shot Transfer Degradation
    in Continual Learning of Vision-Language Models", ICCV.

    Example:
        retention:
          ema: {class_path: mmalign.retention.EMA, init_args: {decay: 0.99}}
    """

    def __init__(self, decay: float = 0.999) -> None:
        """
        Args:
            decay: per step, in [0, 1).

        Raises:
            ValueError: it is outside.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay is {decay}, must be in [0, 1)")
        self.decay = decay
        self.step = 0
        self.average: dict[str, Tensor] = {}

    def begin(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        self.step = 0
        self.average = trainable_state(model)

    @torch.no_grad()
    def after_step(self, plan: StagePlan, model: Aligner, batch: Batch, embeddings: Embeddings) -> None:
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if name not in self.average:
                    raise ValueError(
                        f"retention.{self.name or 'ema'}: {name!r} came after the average began; "
                        "a method that replaces layers (LoRA) must be listed before this one"
                    )
                kept = self.average[name].to(parameter.device)
                self.average[name] = kept.lerp_(parameter.detach(), 1 - decay)

    def end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        load_parameters(model, self.average)
        self.average = {}

    def bytes_stored(self) -> int:
        return tensor_bytes(self.average)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "average": dict(self.average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.step = state["step"]
            self.average = {name: value.clone() for name, value in state["average"].items()}
