"""Accumulating over k chunks gives the gradients of the one big batch, with dropout and patch dropout on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmalign.batch import Batch, Values
from mmalign.data.collate import collate
from mmalign.losses.base import Loss
from mmalign.model import Aligner
from mmalign.training.chunking import chunked
from mmalign.training.config import build_part, check_config
from mmalign.training.yaml_config import read_config

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
ROWS = 12
DRAWS = ("aten.native_dropout.default", "aten.bernoulli_.float", "aten.rand", "aten.randn", "aten.randperm")


class Draws(TorchDispatchMode):
    """Notes what is drawn at random for each chunk, and deals it out again for all rows at once.

    The masks of the chunks, one below the other, are those of the whole batch: the big batch that this stands for is
    the one that drew them.
    """

    def __init__(self, chunks: list[list[Tensor]] | None = None) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []
        self.given = None if chunks is None else [torch.cat(parts) for parts in zip(*chunks, strict=True)]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not str(function).startswith(DRAWS):
            return result
        if self.given is None:
            self.drawn.append((result[1] if isinstance(result, tuple) else result).clone())
            return result
        again = self.given.pop(0)
        if isinstance(result, tuple):  # native_dropout: (scaled input, mask)
            return args[0] * again / (1 - args[1]), again
        return result.copy_(again)


def debug_model() -> tuple[Aligner, nn.ModuleDict]:
    """configs/debug.yaml: a ViT with patch dropout, and dropout everywhere; three losses with scales and a bias."""
    overrides = {
        "model.init_args.length_buckets": 1,  # rows in their own order, so that the masks can be laid together
        "model.init_args.encoders.image.init_args.patch_dropout": 0.5,
        "model.init_args.encoders.text.init_args.max_length": 24,
    }
    config = check_config(read_config(DEBUG, overrides))
    model: Aligner = build_part(config["model"], Aligner)
    losses = {n: build_part(config["losses"][n], Loss) for n in ("language", "image_text", "audio_text", "fused_text")}
    return model.double().train(), nn.ModuleDict(losses).double()


def make_batch(model: Aligner) -> Batch:
    generator = np.random.default_rng(0)
    everywhere = torch.ones(ROWS, dtype=torch.bool)
    values: dict[str, Values] = {}
    for name in model.modalities:
        rows: list[Tensor | None] = []
        for i in range(ROWS):
            picture = Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))
            given = {"image": picture, "audio": (generator.standard_normal(1600), 8000), "text": f"text {i} " * 5}
            rows.append(model.tower(name).preprocess.prepare(given[name], None))
        if name != "text":
            rows[{"image": 3, "audio": 8}[name]] = None
        values[name] = collate(model.tower(name).preprocess, rows)
    return Batch([str(i) for i in range(ROWS)], values, torch.arange(ROWS), language=everywhere)


def gradients(
    model: Aligner, losses: nn.ModuleDict, batch: Batch, chunk_size: int | None, recompute: bool
) -> dict[str, Tensor]:
    parts = nn.ModuleDict({"model": model, "losses": losses})
    parts.zero_grad()
    torch.manual_seed(4)
    embeddings = chunked(model, batch, chunk_size, recompute)
    loss = torch.stack([loss(embeddings) for loss in losses.values()]).sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in parts.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach()}


@pytest.mark.parametrize("chunk_size", [4, 5])
def test_accumulated_equals_the_one_big_batch_with_dropout(chunk_size: int) -> None:
    model, losses = debug_model()
    batch = make_batch(model)
    recorders: list[Draws] = []
    plain = model.forward

    def recorded(part: Batch) -> Any:
        recorders.append(Draws())
        with recorders[-1]:
            return plain(part)

    model.forward = recorded  # type: ignore[method-assign]
    kept = gradients(model, losses, batch, chunk_size, recompute=False)
    chunks = [recorder.drawn for recorder in recorders]
    assert len(chunks) == -(-ROWS // chunk_size)
    assert len(chunks[0]) >= 10  # patches, attention, perceptrons, projections

    def replayed(part: Batch) -> Any:
        with (replay := Draws(chunks)):
            embeddings = plain(part)
        assert not replay.given
        return embeddings

    model.forward = replayed  # type: ignore[method-assign]
    whole = gradients(model, losses, batch, None, recompute=False)
    model.forward = plain  # type: ignore[method-assign]
    recomputed = gradients(model, losses, batch, chunk_size, recompute=True)
    other = gradients(model, losses, batch, None, recompute=False)

    assert {"losses.image_text.scale.log", "losses.audio_text.logit_bias"} <= set(whole)
    assert set(kept) == set(recomputed) == set(whole)
    for name, expected in whole.items():
        for found in (kept[name], recomputed[name]):
            assert (found - expected).norm() <= 1e-6 * expected.norm() + 1e-12, name
    assert (other["loss"] - whole["loss"]).abs() > 1e-6  # the masks do matter
