"""What is trained at which rate: parameter groups, AdamW, warm-up and decay."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mmalign.checks import at_least, positive
from mmalign.training.trainable import check_globs


def undecayed(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay must not shrink.

    These are scalars and vectors (biases, gains of norms, logit scales, class tokens), and whatever a part of the
    module names in `no_weight_decay()`, as timm's models do.
    """
    names = {name for name, parameter in module.named_parameters() if parameter.ndim < 2}
    for prefix, part in module.named_modules():
        declared = getattr(part, "no_weight_decay", None)
        if callable(declared):
            names |= {f"{prefix}.{name}" if prefix else name for name in declared()}
    return names


def parameter_groups(
    components: Mapping[str, nn.Module], learning_rate: float, learning_rates: dict[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """The trainable parameters by component and by whether they decay; each group has a `name`.

    A parameter that several components share belongs to the first.

    Args:
        components: such as "encoder.image" or "loss.image_text".
        learning_rates: by component name or glob ("encoder.*"). Where several match, the last one counts. Other
            components learn at `learning_rate`.

    Raises:
        ValueError: a glob matches no component, or nothing is trainable.
    """
    check_globs("learning_rates", learning_rates, components)
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for component, module in components.items():
        rate = next((r for g, r in reversed(learning_rates.items()) if fnmatchcase(component, g)), learning_rate)
        fixed = undecayed(module)
        trainable = {n: p for n, p in module.named_parameters() if p.requires_grad and p not in seen}
        seen.update(trainable.values())
        for suffix, decay, names in (
            ("", weight_decay, [name for name in trainable if name not in fixed]),
            (" (no decay)", 0.0, [name for name in trainable if name in fixed]),
        ):
            if names:
                parameters = [trainable[name] for name in names]
                groups.append({"name": component + suffix, "lr": rate, "weight_decay": decay, "params": parameters})
    if not groups:
        raise ValueError(f"nothing is trainable: every parameter of {', '.join(components)} is frozen")
    return groups


@dataclass(frozen=True)
class WarmupCosine:
    """Factor of the learning rate at a step: linear rise, then half a cosine down to 0, or level.

    Step `warmup_steps` is the first at the full rate; step `steps`, which the training no longer takes, is at 0.

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

    def __post_init__(self) -> None:
        positive(learning_rate=self.learning_rate, eps=self.eps, gradient_clip=self.gradient_clip)
        for name, rate in self.learning_rates.items():
            at_least(0, **{f"learning_rates.{name}": rate})
        at_least(0, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)

    def check(self, steps: int) -> None:
        """Raises: ValueError: the warm-up is longer than a training of `steps` steps."""
        self._factor(steps)

    def build(self, components: Mapping[str, nn.Module], steps: int) -> dict[str, Any]:
        """AdamW and its schedule for a training of `steps` optimizer steps, for Lightning.

        Raises:
            ValueError: the warm-up is longer than the training, or as in `parameter_groups`.
        """
        factor = self._factor(steps)
        groups = parameter_groups(components, self.learning_rate, self.learning_rates, self.weight_decay)
        # one pass over the weights instead of a dozen: on a CPU the step takes an eighth of the time
        optimizer = AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True)
        # a loss scaler shall take its factor off before, as for any optimizer: Lightning clips in between
        optimizer._step_supports_amp_scaling = False
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step", "name": "learning_rate"},
        }

    def _factor(self, steps: int) -> "WarmupCosine":
        return WarmupCosine(self.warmup_steps, steps, decay=self.schedule == "cosine")
