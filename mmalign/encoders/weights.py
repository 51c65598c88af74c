"""Where a tower's weights come from: a file, or a name of the asset registry; and how they are read."""

import difflib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn


def locate(name: str) -> Path:
    """The file or folder that `name` means: an existing path, or else an asset from the cache; nothing is downloaded.

    Raises:
        FileNotFoundError: it is neither, or the asset isn't in the cache yet.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    from mmalign import assets

    if name not in assets.ASSETS:
        raise FileNotFoundError(f"{name!r} is neither a file, nor a folder, nor an asset (see `mmalign assets list`)")
    return assets.path(name)


def load_tensors(path: Path) -> dict[str, Any]:
    """A state dict from a safetensors file or a torch checkpoint. No code in the file is ever run.

    Raises:
        ValueError: it holds something else.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{path}: not a file of weights (only tensors and plain values are read): {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a state dict, found a {type(loaded).__name__}")
    return loaded.get("state_dict", loaded)


def load_open_clip(model: str, pretrained: str | None, **options: Any) -> Any:
    """`open_clip.create_model`.

    Raises:
        ValueError: open_clip can't make the model or has no such weights of it; says why, with names that are near.
    """
    import open_clip

    try:
        return open_clip.create_model(model, pretrained=pretrained, **options)
    except RuntimeError as error:
        hint = _near(model, open_clip.list_models()) or _near(
            pretrained or "", open_clip.list_pretrained_tags_by_model(model)
        )
        raise ValueError(f"open_clip {model!r}, weights {pretrained!r}: {error}{hint}") from error


def check_patch_dropout(module: nn.Module, model: str) -> None:
    """Raise a ValueError for a model that was to drop patches and has nothing that does."""
    if not any(type(part).__name__.startswith("PatchDropout") for part in module.modules()):
        raise no_patch_dropout(model)


def no_patch_dropout(model: str) -> ValueError:
    return ValueError(f"patch_dropout: {model!r} has no patches to drop; only vision transformers have")


def check_timm_model(model: str) -> None:
    """Raise a ValueError for a model that timm doesn't have, with the names that are near."""
    import timm

    if ":" not in model and not timm.is_model(model):  # a colon is timm's own sign for hubs and folders
        raise ValueError(f"timm has no model {model!r}{_near(model, timm.list_models())}")


def _near(name: str, names: list[str]) -> str:
    close = [] if name in names else difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def load_in_order(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load a state dict by name; where the names are others', by position, if number and all shapes agree.

    Raises:
        ValueError: the tensors don't correspond; names the first that doesn't.
    """
    own = module.state_dict()
    if set(own) == set(state):
        module.load_state_dict(state)
        return
    if len(own) != len(state):
        raise ValueError(f"{source}: holds {len(state)} tensors, the model has {len(own)}")
    for (name, tensor), (other, given) in zip(own.items(), state.items(), strict=True):
        # The last part of a name ("weight", "running_mean") tells tensors of one shape apart.
        if tensor.shape != given.shape or name.rsplit(".", 1)[-1] != other.rsplit(".", 1)[-1]:
            raise ValueError(f"{source}: {other} {list(given.shape)} does not fit {name} {list(tensor.shape)}")
    module.load_state_dict(dict(zip(own, state.values(), strict=True)))


def layers_in_order(module: nn.Module) -> list[nn.Module]:
    """Parts with parameters from input to output: sequences are opened, and a norm belongs to what it follows."""
    parts: list[nn.Module] = []
    for child in module.children():
        inner = list(child.children())
        wraps_a_list = len(inner) == 1 and isinstance(inner[0], nn.ModuleList)
        if type(child) in (nn.Sequential, nn.ModuleList) or wraps_a_list:
            parts += layers_in_order(child)
        elif any(True for _ in child.parameters()):
            if parts and "norm" in type(child).__name__.lower():
                child = nn.ModuleList([parts.pop(), child])
            parts.append(child)
    return parts
