"""Data sets whose embeddings are chosen by the test: a tower that gives out the array that it reads."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.data.config import ShardData
from mmalign.data.index import build_index
from mmalign.data.sample import RawSample
from mmalign.data.shards import write_shards
from mmalign.encoders.base import Axis, Encoder, SeriesPreprocess
from mmalign.evaluation.base import Moment
from mmalign.fusion.base import Fusion
from mmalign.model import Aligner

DIM = 16
Vectors = dict[str, np.ndarray]


class ReadOut(Encoder):
    """Pools to the array itself."""

    def __init__(self) -> None:
        super().__init__(SeriesPreprocess(channels=DIM, hertz=1.0), DIM, Axis("frames", hertz=1.0))

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens.mean_pooled(values, mask)


class MeanFusion(Fusion):
    """The mean of what is present."""

    def build(self, modalities: list[str], dim: int) -> None:
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, vectors: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
        return self.scale * sum(vectors[name] * present[name].unsqueeze(1) for name in vectors)


def read_out_model(names: list[str], fusion: bool = False) -> Aligner:
    model = Aligner({name: ReadOut() for name in names}, dim=DIM, fusion=MeanFusion() if fusion else None)
    for projection in model.projections.values():
        nn.init.eye_(projection.linear.weight)
        nn.init.zeros_(projection.linear.bias)
    return model


def npy(vector: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(vector, dtype=np.float32).reshape(1, DIM))
    return file.getvalue()


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., ShardData]:
    """`make_data(samples, groups, modalities, metadata)`; a sample is vectors by member, without the ".npy"."""

    def make(
        samples: list[Vectors],
        groups: list[str] | None = None,
        modalities: dict[str, str] | None = None,
        metadata: list[dict] | None = None,
        texts: list[str] | None = None,
    ) -> ShardData:
        raw = []
        for i, vectors in enumerate(samples):
            members = {f"{name}.npy": npy(vector) for name, vector in vectors.items()}
            described = dict(metadata[i]) if metadata else {}
            if groups:
                described["group"] = groups[i]
            if texts:
                members["txt"] = texts[i].encode()
            raw.append(RawSample(f"s{i:04d}", members | {"json": json.dumps(described).encode()}))
        directory = tmp_path / "made"
        write_shards(directory, "test", raw)
        build_index(directory)
        return ShardData(str(directory), "test", modalities)

    return make


@pytest.fixture
def moment() -> Moment:
    return Moment("run", "start", 0, 0, 3, frozenset({frozenset({"image", "text"})}))
