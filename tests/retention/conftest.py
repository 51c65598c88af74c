"""A model of a few weights, data sets of arrays, and a stage of training without Lightning."""

import copy
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmalign.batch import Batch, Embeddings, Tokens
from mmalign.data.config import ShardData
from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.data.stream import Stream
from mmalign.encoders.base import Axis, Encoder, SeriesPreprocess
from mmalign.encoders.text_causal import CausalLanguageModel
from mmalign.losses import InfoNCE, blockwise
from mmalign.model import Aligner
from mmalign.retention import Retention, StagePlan
from mmalign.retention.base import preprocess_of
from mmalign.training.trainable import freeze_all_but

CHANNELS, LENGTH = 3, 4


class TinyTower(Encoder):
    """The mean of a series through two linear layers."""

    def __init__(self) -> None:
        super().__init__(SeriesPreprocess(CHANNELS, 10.0), 6, Axis("frames", hertz=10.0))
        self.first = nn.Linear(CHANNELS, 8)
        self.second = nn.Linear(8, 6)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens.mean_pooled(self.second(torch.tanh(self.first(values))), mask)


class SpeakingTower(TinyTower, CausalLanguageModel):
    """Also says how likely a text is; here, how well half of a series predicts its mean."""

    def likelihood(self, tokens: Tokens, values: Tensor, mask: Tensor) -> Tensor:
        nll = (tokens.pooled[:, :CHANNELS] - values.mean(1)).square().sum(1)
        return torch.stack([nll, torch.full_like(nll, float(values.shape[1]))], dim=1)


def array_bytes(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.astype(np.float32))
    return buffer.getvalue()


class Workshop:
    """Makes what the tests of retention need below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def samples(self, count: int, modalities: Iterable[str], seed: int = 0) -> list[RawSample]:
        generator = np.random.default_rng(seed)
        samples = []
        for i in range(count):
            content = generator.normal(size=(LENGTH, CHANNELS))
            members = {f"{name}.npy": array_bytes(content + 0.1 * j) for j, name in enumerate(modalities)}
            members["unused.npy"] = bytes(3000)
            members["json"] = json.dumps({"number": i}).encode()
            samples.append(RawSample(f"s{i:04d}", members))
        return samples

    def data(self, name: str, count: int, modalities: Iterable[str], seed: int = 0, **more: Any) -> ShardData:
        names = list(modalities)
        directory = self.folder / name
        if not directory.exists():
            write_shards(directory, "train", self.samples(count, names, seed), samples_per_shard=7)
            build_index(directory)
        return ShardData(str(directory), modalities={m: f"{m}.npy" for m in names}, **more)

    def model(self, modalities: str = "abc", speaking: str = "") -> Aligner:
        torch.manual_seed(1)
        towers: dict[str, Encoder] = {m: SpeakingTower() if m in speaking else TinyTower() for m in modalities}
        return Aligner(towers, dim=5)

    def losses(self) -> dict[str, nn.Module]:
        return {"ab": InfoNCE("a", "b", learn_scale=False), "bc": InfoNCE("b", "c", learn_scale=False)}

    def plans(self, steps: int = 6, batch_size: int = 8, seed: int = 0, size: int = 24) -> list[StagePlan]:
        """Two stages: a with b, then b with c."""
        first = StagePlan(
            index=1,
            name="one",
            steps=steps,
            batch_size=batch_size,
            data={"ab": self.data(f"ab{size}", size, "ab", 1)},
            losses={"ab": 1.0},
            trainable={},
            seed=seed,
            directory=self.folder / "run",
            pairs={"ab": ("a", "b")},
        )
        second = copy.deepcopy(first)
        second.index, second.name, second.past = 2, "two", [first]
        second.data, second.losses = {"bc": self.data(f"bc{size}", size, "bc", 2)}, {"bc": 1.0}
        second.pairs = {"bc": ("b", "c")}
        return [first, second]

    def stream(self, plan: StagePlan, model: Aligner) -> Stream:
        new = 1.0 - sum(share for _, share in plan.replay.values())
        total = sum(data.weight for data in plan.data.values())
        sources = {name: (data, new * data.weight / total) for name, data in plan.data.items()} | plan.replay
        limits = plan.limits
        return Stream(sources, preprocess_of(model), plan.batch_size, plan.seed, plan.name, plan.steps, limits=limits)

    def train(
        self,
        plan: StagePlan,
        model: Aligner,
        methods: dict[str, Retention],
        resume: dict[str, Any] | None = None,
        stop: int | None = None,
        watch: Callable[[Batch, Embeddings, dict[str, Tensor]], None] | None = None,
    ) -> dict[str, Any]:
        """One stage as the curriculum runs it; returns what a checkpoint after the last step would hold."""
        plan = plan.clone()
        losses = self.losses()
        for name, method in methods.items():
            method.name = name
            method.prepare(plan, model)
        freeze_all_but(model, plan.trainable)
        for method in methods.values():
            method.begin(plan, model, losses)
        start = 0
        if resume is not None:
            model.load_state_dict(resume["model"])
            start = resume["step"]
            for name, method in methods.items():
                method.load_state_dict(resume["retention"][name])
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        stream = self.stream(plan, model)
        end = plan.steps if stop is None else stop
        for step in range(start, end):
            batch = stream[step]
            embeddings = model(batch)
            terms = {name: weight * self._loss(losses[name], plan, embeddings) for name, weight in plan.losses.items()}
            for method in methods.values():
                terms |= method.penalty(model, batch, embeddings)
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            for method in methods.values():
                method.after_step(plan, model, batch, embeddings.map_tensors(lambda tensor: tensor.detach()))
            if watch is not None:
                watch(batch, embeddings, terms)
        state = {
            "model": copy.deepcopy(model.state_dict()),
            "retention": self.plain({name: method.state_dict() for name, method in methods.items()}),
            "step": end,
        }
        if stop is None:
            for method in reversed(methods.values()):
                method.end(plan, model, losses)
            for method in methods.values():
                method.after_end(plan, model, losses)
        return state

    def _loss(self, loss: Any, plan: StagePlan, embeddings: Embeddings) -> Tensor:
        if plan.separate_replay and embeddings.replayed is not None:
            return blockwise(loss, embeddings, embeddings.replayed.long())
        return loss(embeddings)

    def plain(self, state: Any) -> Any:
        """Through a file that holds tensors and plain values only."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)
