"""Training on frozen towers, and on partly frozen ones, with what is frozen computed once or each time."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from mmalign.bench.base import NO_BAR, Benchmark, Outcome, Quantity
from mmalign.bench.material import Shape, clip_name, write_pictures, write_towers
from mmalign.bench.training import pictures, towers

_STEPS = 10
_PEER = "itself, computing both towers"
_PEER_PREFIX = "itself, computing all layers"


class FrozenTowers(Benchmark):
    """The same stream, batches and projections; only where the towers' outputs come from differs.

    Building the cache, once, is not in the time: it costs one forward pass over the data.
    """

    name = "frozen-towers"
    title = "10 steps of two heads on frozen ViT-S/16 and text towers, batch 64, decoding included"
    sides = ("recompute", "cached")
    full: ClassVar = Shape(batch=64, image=64, width=384, layers=12)
    quantities = (
        Quantity("samples per second", "rate", "cached", "recompute", _PEER, ">= 20", unit="/s"),
        Quantity(
            "difference of the loss curve", "losses", "cached", "recompute", _PEER, "<= 1e-5",
            "absolute",
        ),
    )  # fmt: skip

    @property
    def batch(self) -> int:
        return self.settings.size(self.full.batch, least=16)

    def prepare(self) -> None:
        write_towers(self.folder / "model", self.full, self.settings.scale)
        write_pictures(self.folder / "shards", self.batch * _STEPS, self.full.image)
        self._caches(self._towers())

    def _towers(self) -> dict[str, Any]:
        return {name: t.to(self.settings.device) for name, t in towers(clip_name(self.folder / "model")).items()}

    def _caches(self, encoders: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Built by `prepare`, found by `load`."""
        from mmalign.data.precompute import open_or_build

        data = pictures(self.folder / "shards")
        return {
            "pictures": {name: open_or_build(data, name, tower, progress=False) for name, tower in encoders.items()}
        }

    def load(self, side: str) -> Callable[[], Outcome]:
        import torch

        from mmalign.data.loader import StageLoader
        from mmalign.data.stream import Stream
        from mmalign.losses.infonce import InfoNCE
        from mmalign.model import Aligner

        torch.set_flush_denormal(True)
        device = self.settings.device
        encoders = self._towers()
        features = self._caches(encoders) if side == "cached" else None
        model = Aligner(encoders, dim=128).to(device)
        model.encoders.requires_grad_(False).eval()
        loss = InfoNCE("image", "text").to(device)
        optimizer = torch.optim.AdamW([*model.projections.parameters(), *loss.parameters()], lr=1e-3)
        preprocess = {name: tower.preprocess for name, tower in encoders.items()}
        sources = {"pictures": (pictures(self.folder / "shards"), 1.0)}
        loader = StageLoader(Stream(sources, preprocess, self.batch, 0, "main", _STEPS, features=features))

        def run() -> Outcome:
            losses = []
            for batch in loader:
                value = loss(model(batch.to(device)))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                losses.append(float(value.detach()))
            return Outcome(arrays={"losses": np.array(losses)})

        return lambda: _timed(run, self.batch)


class FrozenPrefix(Benchmark):
    """The same weights, texts and steps; only whether the leading layers' outputs are remembered differs.

    Two sides see every text once before the clock runs; "first" forgets all of them before every step.
    """

    name = "frozen-prefix"
    title = "10 steps of the last 2 of 12 layers of a Llama of width 384, batch 64, texts of 8 to 24 tokens"
    sides = ("recompute", "remembered", "first")
    quantities = (
        Quantity("samples per second", "rate", "remembered", "recompute", _PEER_PREFIX, ">= 2", unit="/s"),
        Quantity(
            "samples per second, no text seen before", "rate", "first", "recompute", _PEER_PREFIX, NO_BAR, unit="/s"
        ),
        Quantity(
            "difference of the loss curve", "losses", "remembered", "recompute", _PEER_PREFIX, "<= 1e-5",
            "absolute",
        ),
    )  # fmt: skip

    def prepare(self) -> None:
        from transformers import LlamaConfig

        width, layers = (384, 12) if self.settings.scale >= 0.5 else (64, 4)
        LlamaConfig(
            vocab_size=1000, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
            num_attention_heads=width // 32, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
        ).save_pretrained(self.folder / "llama")  # fmt: skip

    def load(self, side: str) -> Callable[[], Outcome]:
        import torch

        from mmalign.encoders.text_hf import TextCausalHF

        torch.manual_seed(0)
        batch = self.settings.size(64, least=16)
        capacity = 0 if side == "recompute" else 2**30
        tower = TextCausalHF(
            str(self.folder / "llama"), pretrained=False, max_length=32, prefix_cache_bytes=capacity
        ).eval()
        tower.requires_grad_(False)
        for layer in tower.layers()[-2:]:
            layer.requires_grad_(True)
        optimizer = torch.optim.AdamW([p for p in tower.parameters() if p.requires_grad], lr=1e-4, fused=True)
        batches = torch.randint(0, 1000, (4, batch, 24))
        mask = torch.arange(24) < torch.randint(8, 25, (batch, 1))
        target = torch.randn(batch, tower.width)

        def run() -> Outcome:
            losses = []
            for step in range(_STEPS):
                if side == "first":
                    tower.prefix.forget()
                pooled = torch.nn.functional.normalize(tower(batches[step % len(batches)], mask).pooled, dim=-1)
                value = torch.nn.functional.cross_entropy(pooled @ target.T, torch.arange(batch))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                losses.append(float(value.detach()))
            return Outcome(arrays={"losses": np.array(losses)})

        for values in batches:
            tower(values, mask)  # with gradients: only training steps remember
        return lambda: _timed(run, batch)


def _timed(run: Callable[[], Outcome], batch: int) -> Outcome:
    from time import perf_counter

    started = perf_counter()
    outcome = run()
    seconds = perf_counter() - started
    return Outcome(seconds, {"rate": batch * _STEPS / seconds}, outcome.arrays)
