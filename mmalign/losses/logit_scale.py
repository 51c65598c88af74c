"""The learned factor of the similarities."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LogitScale(nn.Module):
    """A positive factor, learned unless it is to be fixed, with an upper bound: `logit_scale` multiplies similarities.

    What is learned is its logarithm. Past the bound the value stays there while the gradient goes through unchanged, so
    that the factor can come back, and so that the gradients of several ranks or chunks still add up to the gradient of
    the whole batch. In training the parameter itself is put back to the bound before each use, as CLIP does after each
    step.

    Paper: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, section 2.5.
    """

    log: Tensor

    def __init__(self, initial: float, maximum: float = 100.0, learned: bool = True) -> None:
        """
        Args:
            learned: False makes it a number that no stage trains.

        Raises:
            ValueError: `initial` is not in (0, maximum].
        """
        super().__init__()
        if not 0 < initial <= maximum:
            raise ValueError(
                f"a logit scale starts above 0 and at most at its bound of {maximum:g}, not at {initial:g}"
            )
        self.maximum = maximum
        log = torch.tensor(math.log(initial))
        if learned:
            self.log = nn.Parameter(log)
        else:
            self.register_buffer("log", log)

    def forward(self) -> Float[Tensor, ""]:
        """The factor, differentiable by its logarithm."""
        bound = math.log(self.maximum)
        with torch.no_grad():
            if self.training:
                self.log.clamp_(max=bound)
            excess = self.log - self.log.clamp(max=bound)
        return (self.log - excess).exp()
