"""Which parameters a stage trains, and the one line that says so."""

import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from mmalign.encoders.base import Encoder
from mmalign.model import Aligner, mixes_rows


def freeze_all_but(model: Aligner, trainable: Mapping[str, int | str]) -> None:
    """Set `requires_grad` of every parameter by component globs; the last glob that matches a component counts.

    What a constructor has frozen stays so.

    Raises:
        ValueError: a glob matches no component, or asks for more layers than there are, or for less than none.
    """
    check_trainable(model, trainable)
    for name, component in model.components().items():
        wanted = wanted_of(trainable, name)
        component.requires_grad_(wanted == "all")
        if isinstance(wanted, int):
            layers = _layers(component)
            for layer in layers[len(layers) - wanted :]:
                layer.requires_grad_(True)
    for name in model.fixed:
        model.get_parameter(name).requires_grad_(False)


def check_trainable(model: Aligner, trainable: Mapping[str, int | str]) -> None:
    """What `freeze_all_but` would refuse, without changing anything.

    Raises:
        ValueError: a glob matches no component, or asks for more layers than there are, or for less than none.
    """
    components = model.components()
    check_globs("trainable", trainable, components)
    for name, component in components.items():
        wanted = wanted_of(trainable, name)
        if isinstance(wanted, int) and not 0 < wanted <= len(_layers(component)):
            raise ValueError(f"trainable: {name} has {len(_layers(component))} layers, not {wanted}")


def check_globs(key: str, globs: Iterable[str], components: Iterable[str]) -> None:
    """Raise a ValueError that names the key and the first glob that matches no component."""
    known = list(components)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in known):
            raise ValueError(f"{key}: {glob!r} matches none of the components {', '.join(known)}")


def _layers(component: nn.Module) -> list[nn.Module]:
    return component.layers() if isinstance(component, Encoder) else list(component.children())


def freeze_unreached(model: Aligner, reached: Iterable[str]) -> None:
    """Freeze the components that no loss and no method of a stage reaches.

    Their gradients would be missing on one rank and zero on several, where weight decay would then shrink them.

    Args:
        reached: globs of components (see `Loss.reaches`, `Retention.reaches`).
    """
    for name, component in model.components().items():
        if not any(fnmatchcase(name, glob) for glob in reached):
            component.requires_grad_(False)


def wanted_of(trainable: Mapping[str, int | str], component: str) -> int | str:
    """ "all", "none", or how many last layers of a component are trained: what the last glob that matches says.

    No layers are "none".
    """
    matching = [value for glob, value in trainable.items() if fnmatchcase(component, glob)]
    return (matching[-1] or "none") if matching else "all"


def frozen_modules(model: Aligner) -> list[nn.Module]:
    """The modules that have parameters, none of which is trained; their descendants are not listed again."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            found.append(module)
            return
        for child in module.children():
            visit(child)

    visit(model)
    return found


def warn_of_batch_norm(model: Aligner, ranks: int) -> None:
    """With several ranks, warn of batch norm in training mode: each rank's statistics are those of its own rows.

    torch.nn.SyncBatchNorm is no way out: it waits for all ranks, and one whose rows all lack a modality has no part in
    that modality's tower.
    """
    found = [name for name, component in model.components().items() if mixes_rows(component)]
    if ranks > 1 and found:
        warnings.warn(
            f"{', '.join(found)}: batch norm sees the rows of its own rank alone, so that gradients with {ranks} ranks "
            "are not quite those with one; freeze it, or take a model with another norm",
            stacklevel=2,
        )


def parameter_counts(model: Aligner) -> dict[str, tuple[int, int]]:
    """By component: (trained, all) parameters."""
    return {
        name: (sum(p.numel() for p in part.parameters() if p.requires_grad), sum(p.numel() for p in part.parameters()))
        for name, part in model.components().items()
    }


def describe_trainable(model: Aligner) -> str:
    """One line: "trained: encoder.text 0 of 22.6M, projection.text 98.4k of 98.4k, …"."""

    def short(count: int) -> str:
        for limit, unit in ((1e6, "M"), (1e3, "k")):
            if count >= limit:
                return f"{count / limit:.3g}{unit}"
        return str(count)

    parts = [f"{name} {short(trained)} of {short(total)}" for name, (trained, total) in parameter_counts(model).items()]
    return "trained parameters: " + ", ".join(parts)
