"""What a run takes over from the model that it starts from: whole components, or nothing of them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmalign.model import FUSED


@dataclass(frozen=True)
class TakenOver:
    """Components as in `Aligner.components`, and "loss.NAME".

    Attributes:
        fresh: of this run, which stay as they were built.
        left_out: of the checkpoint, which this run has not.
        pairs: of modalities that the checkpoint had been trained on, both of which were taken over.
    """

    fresh: list[str]
    left_out: list[str]
    pairs: list[list[str]]

    def __str__(self) -> str:
        parts = (("starts anew", self.fresh), ("left out", self.left_out))
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)


def take_over(holder: nn.Module, state: dict[str, Tensor], facts: dict[str, Any], origin: str) -> TakenOver:
    """Load the components that both have.

    A fusion is made for its set of modalities: with another one it starts anew, even where its shapes would fit.

    Args:
        holder: {"model": …, "losses": …}.
        state: weights under the names that `holder` gives them.
        facts: those of the checkpoint; its encoders and trained pairs are looked at.
        origin: what error messages call the checkpoint.

    Raises:
        ValueError: a component does not fit, or there is none in common. Nothing was loaded by then.
    """
    own: dict[str, Any] = holder.state_dict()
    mine, theirs = _by_component(own), _by_component(state)
    modalities = {name.partition(".")[2] for name in mine if name.startswith(("encoder.", "projection."))}
    if modalities != set(facts["spec"]):
        theirs.pop("fusion", None)
    shared = [name for name in mine if name in theirs]
    if not shared:
        raise ValueError(f"{origin}: none of its components is one of this model: {', '.join(mine)}")
    for name in shared:
        if reason := _misfit(mine[name], theirs[name]):
            raise ValueError(f"{origin}: its {name} does not fit this configuration's: {reason}")
    holder.load_state_dict(own | {key: state[key] for name in shared for key in theirs[name]})
    fresh = [name for name in mine if name not in theirs]
    known = {name for name in modalities if not {f"encoder.{name}", f"projection.{name}"} & set(fresh)}
    known |= {FUSED} if "fusion" in shared else set()
    pairs = [pair for pair in facts["trained_pairs"] if set(pair) <= known]
    return TakenOver(fresh, [name for name in _by_component(state) if name not in mine], pairs)


def _by_component(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """ "model.encoders.image.net.weight" belongs to "encoder.image"."""
    singular = {"model.encoders": "encoder", "model.projections": "projection"}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        first, second, third, *_ = [*key.split("."), "", ""]
        kind = singular.get(f"{first}.{second}")
        component = f"{kind}.{third}" if kind else f"loss.{second}" if first == "losses" else second
        parts.setdefault(component, {})[key] = value
    return parts


def _misfit(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Why weights cannot be loaded; empty if they can."""
    for problem, keys in (("it lacks", mine.keys() - theirs.keys()), ("it has", theirs.keys() - mine.keys())):
        if keys:
            return f"{problem} {min(keys)}"
    for key, value in mine.items():
        here, there = (list(getattr(some, "shape", [])) for some in (value, theirs[key]))
        if here != there:
            return f"{key} is {there} there, {here} here"
    return ""
