"""Low-rank adaptation: a stage trains small additions to a tower, which are merged into it when the stage ends."""

import hashlib
import re
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan


class LoRA(Retention):
    """Trains W + alpha / rank · B A in place of W, in linear layers of some towers, whose other weights are frozen.

    Loss: none. Stored: nothing between stages, since the product is merged into W when a stage ends. Within a stage,
    the checkpoints hold A and B beside W.

    Cost: a few percent of a tower's parameters are trained, with so much less memory for gradients and optimizer; the
    forward pass takes two thin matrix products more for each layer.

    List it after WiSE, which then works on the merged weights (the first method listed encloses the others), and before
    EMA, which then averages A and B. EWC works on the merged weights wherever it is listed.

    Papers: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR; that it forgets less: Biderman
    et al. 2024, "LoRA Learns Less and Forgets Less", TMLR.

    Example:
        retention:
          lora:
            class_path: mmalign.retention.LoRA
            init_args: {components: [encoder.text], rank: 8, target_modules: [q_proj, v_proj]}
    """

    def __init__(
        self,
        components: list[str],
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        target_modules: list[str] | None = None,
    ) -> None:
        """
        Args:
            components: globs of components ("encoder.text").
            rank: of the additions.
            alpha: their scale is alpha / rank.
            dropout: on their input.
            target_modules: last parts of the names of linear layers; None means all that the stage trains, except those
                that share their weight with another layer and those inside nn.MultiheadAttention, which does not call
                them.

        Raises:
            ValueError: rank is below 1; at the start of a stage: a glob or a target matches nothing.
        """
        if rank < 1:
            raise ValueError(f"LoRA: rank is {rank}, must be at least 1")
        self.components = components
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.target_modules = target_modules
        self._trained: dict[str, dict[str, bool]] = {}

    def begin(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self._trained = {}
        for glob in self.components:
            if not any(fnmatchcase(name, glob) for name in model.components()):
                raise ValueError(f"{self._label}: {glob!r} matches none of the components {list(model.components())}")
        for name, component in model.components().items():
            if not any(fnmatchcase(name, glob) for glob in self.components):
                continue
            before = {key: p.requires_grad for key, p in component.named_parameters()}
            if not any(before.values()):
                continue  # this stage freezes it
            targets = self._targets(name, component)
            config = LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha,
                lora_dropout=self.dropout,
                bias="none",
                target_modules="|".join(re.escape(target) for target in targets),
            )
            digest = hashlib.blake2b(f"lora/{plan.seed}/{plan.name}/{name}".encode(), digest_size=8).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(digest) >> 1)
                inject_adapter_in_model(config, component)
            for key, parameter in component.named_parameters():
                parameter.requires_grad_(".lora_" in key)
            self._trained[name] = before

    def end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        for name, before in self._trained.items():
            component = model.components()[name]
            _merge(component)
            for key, parameter in component.named_parameters():
                parameter.requires_grad_(before[key])
        self._trained = {}

    @property
    def _label(self) -> str:
        return f"retention.{self.name or 'lora'}"

    def _targets(self, component_name: str, component: nn.Module) -> list[str]:
        """Full names of the linear layers to adapt."""
        owners: dict[int, int] = {}
        for module in component.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        uncalled = [f"{name}.out_proj" for name, m in component.named_modules() if isinstance(m, nn.MultiheadAttention)]
        found = [
            name
            for name, module in component.named_modules()
            if isinstance(module, nn.Linear)
            and module.weight.requires_grad
            and owners[id(module.weight)] == 1
            and name not in uncalled
            and (self.target_modules is None or name.rpartition(".")[2] in self.target_modules)
        ]
        missing = set(self.target_modules or []) - {name.rpartition(".")[2] for name in found}
        if missing or not found:
            what = ", ".join(sorted(missing)) or "trained linear layers"
            raise ValueError(f"{self._label}: {component_name} has no {what} to adapt")
        return found


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by the names of the plain layers: of a layer that is wrapped, W + alpha / rank · B A, with a
    graph to A and B.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, wrapped, _ = name.partition(".lora_")
        if not wrapped:
            weights[name] = parameter
        elif f"{layer}.weight" not in weights:  # A; B follows
            module: Any = model.get_submodule(layer)
            weights[f"{layer}.weight"] = module.get_base_layer().weight + module.get_delta_weight("default")
    return weights


def _merge(component: nn.Module) -> None:
    """Add every product B A to its weight, and put the plain layers back."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = {name: module for name, module in component.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in wrapped.items():
        module.merge()
        parent, _, last = name.rpartition(".")
        setattr(component.get_submodule(parent), last, module.get_base_layer())
    if hasattr(component, "peft_config"):
        del component.peft_config
