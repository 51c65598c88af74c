"""mmalign's stream against a plain webdataset pipeline: the same tars, decoders, transforms, one worker each."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from mmalign.bench.base import Benchmark, Outcome, Quantity
from mmalign.bench.material import write_pictures

_BATCH = 64
_PEER = "webdataset pipeline"
_PATTERNS = {"image": "jpg", "text": "txt", "audio": "flac"}


class StreamAgainstWebdataset(Benchmark):
    """The peer shuffles shards and a buffer of 1,000; mmalign's stream is exact and resumable."""

    name = "stream"
    title = "4,000 JPEGs of 320 pixels to 128, 2 s of FLAC, captions: decoded, augmented, collated, batch 64"
    sides = ("webdataset", "mmalign")
    needs: ClassVar = {"webdataset": ("webdataset",)}
    quantities = (Quantity("samples per second", "rate", "mmalign", "webdataset", _PEER, ">= 0.9", unit="/s"),)

    @property
    def count(self) -> int:
        return self.settings.size(4000, _BATCH, 4 * _BATCH)

    def prepare(self) -> None:
        write_pictures(self.folder / "shards", self.count, 320, "jpg", 2.0)

    def load(self, side: str) -> Callable[[], Outcome]:
        import torch

        torch.set_num_threads(1)  # as the other process decodes
        batches = self._webdataset if side == "webdataset" else self._mmalign
        return lambda: _count(batches())

    def _mmalign(self) -> Any:
        from mmalign.data.config import ShardData
        from mmalign.data.loader import StageLoader
        from mmalign.data.stream import Stream

        data = ShardData(str(self.folder / "shards"), modalities=_PATTERNS)
        return StageLoader(
            Stream({"data": (data, 1.0)}, preprocess(), _BATCH, 0, "main", self.count // _BATCH), workers=1
        )

    def _webdataset(self) -> Any:
        import webdataset

        urls = [str(path) for path in sorted((self.folder / "shards").glob("*.tar"))]
        data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000).map(Prepare())
        return webdataset.WebLoader(
            data.batched(_BATCH, collation_fn=together, partial=False), batch_size=None, num_workers=1
        )


class Prepare:
    """mmalign's decoders and transforms as a step of a webdataset pipeline."""

    def __init__(self) -> None:
        from mmalign.data.faults import Limits

        self.preprocess = preprocess()
        self.limits = Limits()
        self.generator = np.random.default_rng(0)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        from mmalign.data.decode import decode

        rows = {}
        for name, extension in _PATTERNS.items():
            preparation = self.preprocess[name]
            value = decode(preparation.kind, extension, sample[extension], self.limits, None)
            rows[name] = preparation.prepare(value, self.generator)
        return rows


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = preprocess()
    return {name: found[name].collate([row[name] for row in rows]) for name in _PATTERNS}


def preprocess() -> dict[str, Any]:
    from mmalign.encoders.audio import AudioPreprocess
    from mmalign.encoders.image import ImagePreprocess
    from mmalign.encoders.text_bytes import BytePreprocess

    return {
        "image": ImagePreprocess(size=128, scale_min=0.5, flip=True),
        "text": BytePreprocess(max_length=64),
        "audio": AudioPreprocess(sample_rate_hz=16000, max_seconds=2.0),
    }


def _count(batches: Any) -> Outcome:
    """The first batch, which waits for the worker's start, is not counted."""
    from time import perf_counter

    iterator = iter(batches)
    next(iterator)
    started = perf_counter()
    count = sum(1 for _ in iterator)
    seconds = perf_counter() - started
    return Outcome(seconds, {"rate": count * _BATCH / seconds})
