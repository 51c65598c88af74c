"""What is trained at which rate: parameter groups, AdamW, warm-up and decay."""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

_EMBEDDINGS = ("*modality_embedding*", "*modality_token*", "*type_embedding*")


def undecayed(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay must not shrink.

    These are scalars and vectors (biases, gains of norms, logit scales, class tokens), learned embeddings of modalities, and
    whatever a part of the model names in `no_weight_decay()`, as timm's models do.
    """
    names = {name for name, parameter in module.named_parameters() if parameter.ndim < 2}
    names |= {n for n, _ in module.named_parameters() if any(fnmatchcase(n, pattern) for pattern in _EMBEDDINGS)}
    for prefix, part in module.named_modules():
        declared = getattr(part, "no_weight_decay", None)
        if callable(declared):
            names |= {f"{prefix}.{name}" if prefix else name for name in declared()}
    return names


def parameter_groups(
    module: nn.Module, learning_rate: float, learning_rates: dict[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """The trainable parameters of a module by learning rate and by whether they decay, each group with a `name`.

    Args:
        learning_rates: by component: a parameter name's prefix ("encoder.image") or a glob over whole names
            ("*.norm.*"). Where several match, the last one counts.

    Raises:
        ValueError: a component matches no trainable parameter, or nothing is trainable.
    """
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError("nothing is trainable: every parameter is frozen")
    for component in learning_rates:
        if not any(_matches(name, component) for name in trainable):
            raise ValueError(f"learning_rates: '{component}' matches no trainable parameter")
    fixed = undecayed(module)
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in trainable.items():
        component = next((c for c in reversed(learning_rates) if _matches(name, c)), "")
        decays = name not in fixed
        group = groups.setdefault(
            (component, decays),
            {
                "name": f"{component or 'default'}{'' if decays else ' (no decay)'}",
                "lr": learning_rates.get(component, learning_rate),
                "weight_decay": weight_decay if decays else 0.0,
                "params": [],
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _matches(name: str, component: str) -> bool:
    return name == component or name.startswith(f"{component}.") or fnmatchcase(name, component)


@dataclass(frozen=True)
class WarmupCosine:
    """Factor of the learning rate at a step: linear rise, then half a cosine down to 0, or level.

    Step `warmup_steps` is the first at the full rate, step `steps` the first at 0, which no training of `steps` steps takes.

    Paper: Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts.
    """

    warmup_steps: int
    steps: int
    decay: bool = True

    def __post_init__(self) -> None:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warm-up takes {self.warmup_steps} steps, but the training has only {self.steps}")

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if not self.decay:
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Optimization:
    """How a stage is optimised: AdamW with warm-up.

    Attributes:
        learning_rate: after warm-up, of everything that `learning_rates` does not name.
        learning_rates: by component, see `parameter_groups`.
        weight_decay: of matrices and kernels only; scalars and vectors never decay.
        betas: decay of AdamW's running means of gradient and squared gradient.
        eps: added to the root of the latter.
        warmup_steps: optimizer steps of linear rise.
        gradient_clip: largest norm of all gradients together; None: not clipped.
        schedule: after warm-up.
    """

    learning_rate: float = 1e-3
    learning_rates: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    warmup_steps: int = 0
    gradient_clip: float | None = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"

    def build(self, module: nn.Module, steps: int) -> tuple[AdamW, LambdaLR]:
        """Optimizer and schedule (to be stepped after every optimizer step) for a training of `steps` steps.

        Raises:
            ValueError: warm-up is longer than the training, or as in `parameter_groups`.
        """
        factor = WarmupCosine(self.warmup_steps, steps, decay=self.schedule == "cosine")
        groups = parameter_groups(module, self.learning_rate, self.learning_rates, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps)
        return optimizer, LambdaLR(optimizer, factor)
