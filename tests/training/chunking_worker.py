"""Peak memory in MiB of one step on 512 rows: `python chunking_worker.py CHUNK_SIZE|none`."""

import sys

import torch
import torch.nn.functional as F
from torch import nn

from mmalign.batch import Batch, Embeddings, Values
from mmalign.losses import InfoNCE
from mmalign.training.chunking import chunked


def peak_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def main(chunk_size: int | None) -> None:
    torch.set_num_threads(1)
    tower = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1)) for _ in range(8)))
    loss = InfoNCE("a", "b")

    def embed(batch: Batch) -> Embeddings:
        vectors = {name: F.normalize(tower(v.values).mean(1), dim=1) for name, v in batch.modalities.items()}
        return Embeddings(vectors, {name: v.present for name, v in batch.modalities.items()}, batch.group)

    def batch(size: int) -> Batch:
        values = Values(torch.ones(size, dtype=torch.bool), torch.randn(size, 50, 64))
        return Batch([str(i) for i in range(size)], {"a": values, "b": values}, torch.arange(size))

    loss(chunked(embed, batch(32), 16)).backward()
    rows = batch(512)
    before = peak_mib()
    loss(chunked(embed, rows, chunk_size)).backward()
    print(peak_mib() - before)


if __name__ == "__main__":
    main(None if sys.argv[1] == "none" else int(sys.argv[1]))
