"""Two ways to run a tower that change neither its weights nor its results: recomputed layers, and compiled code."""

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmalign.encoders.base import Encoder
from mmalign.model import Aligner, batch_norms


def recompute_layers(model: Aligner, modalities: list[str]) -> None:
    """Gradient checkpointing: the blocks of these towers keep their inputs only, and run again in the backward pass.

    Activations shrink to one block's plus one tensor per block, for one more forward pass. Dropout draws the same
    numbers again. Gradients are those of the plain tower.

    Paper: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.

    Raises:
        ValueError: no such modality; a tower without repeated blocks, or whose blocks hold batch normalisation, whose
            running statistics the second pass would update again.
    """
    for name in modalities:
        for block in _repeated_blocks(_tower(model, name, "gradient_checkpointing"), name):
            block.forward = partial(_recomputed, block.forward)


def compile_towers(model: Aligner, modalities: list[str], backend: str = "inductor") -> None:
    """`torch.compile` for these towers; names of parameters stay as they are, and compiling waits for the first batch.

    Results differ from those of the plain tower by rounding. Compiling takes from seconds to minutes, and again when a
    batch has another length than the one before; later lengths share one program.

    Raises:
        ValueError: no such modality.
    """
    for name in modalities:
        _tower(model, name, "compile").compile(backend=backend)


def _tower(model: Aligner, name: str, option: str) -> Encoder:
    if name not in model.encoders:
        raise ValueError(f"runtime.{option}: {name!r} is none of the modalities {model.modalities}")
    return model.tower(name)


def _repeated_blocks(tower: Encoder, name: str) -> list[nn.Module]:
    """The layers whose class occurs most often, at least twice."""
    layers = [part for layer in tower.layers() for part in (layer if isinstance(layer, nn.ModuleList) else [layer])]
    kinds = Counter(type(layer) for layer in layers if not isinstance(layer, nn.ParameterList))
    kind, count = kinds.most_common(1)[0] if kinds else (nn.Module, 0)
    blocks = [layer for layer in layers if type(layer) is kind]
    if count < 2:
        raise ValueError(f"runtime.gradient_checkpointing: the {name} tower has no repeated blocks")
    if any(batch_norms(block) for block in blocks):
        raise ValueError(
            f"runtime.gradient_checkpointing: the {name} tower's blocks hold batch normalisation, whose running "
            "statistics a second pass would update again"
        )
    return blocks


def _recomputed(forward: Any, *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    return checkpoint(forward, *arguments, use_reentrant=False, **keywords)
