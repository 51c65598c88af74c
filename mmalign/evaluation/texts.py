"""Texts that an evaluation uses: out of shards or made here, their hash, and their embeddings."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Values
from mmalign.data.config import ShardData
from mmalign.data.decode import decode
from mmalign.data.faults import Limits, SampleError, report_faults
from mmalign.data.order import keyed_hash
from mmalign.data.sample import DEFAULT_MEMBERS
from mmalign.data.select import group_of, variants_in
from mmalign.data.shardset import ShardSet
from mmalign.evaluation.cloze_items import cloze_items
from mmalign.evaluation.embed import device_of
from mmalign.evaluation.minimal_pairs import minimal_pairs

if TYPE_CHECKING:
    from mmalign.model import Aligner


@dataclass(frozen=True)
class Text:
    """A text out of a data set; texts of one group are not independent of each other."""

    text: str
    group: int


def read_texts(data: ShardData, modality: str) -> list[Text]:
    """Every text that stands for the modality, in the order of the split; what cannot be read is left out, and a fault.

    Raises:
        ValueError: the split has no text at all.
    """
    samples, limits = ShardSet.open(data.shards, data.split), Limits()
    pattern = (data.modalities or {}).get(modality, DEFAULT_MEMBERS["text"])
    texts = []
    for index in range(len(samples) if data.limit is None else min(data.limit, len(samples))):
        try:
            sample = samples.read(index)
            group = keyed_hash(group_of(sample, limits), bits=63)
            texts += [
                Text(decode("text", variant.name, variant.data, limits), group)
                for variant in variants_in(sample, pattern, limits)
            ]
        except SampleError as error:
            report_faults([samples.fault(index, error, data.split)])
    if not texts:
        raise ValueError(f"{data.shards}: no sample of the split {data.split!r} has a member {pattern!r}")
    return texts


def text_hash(texts: list[str]) -> str:
    """SHA-256 over the texts in UTF-8, with a zero byte after each."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8") + b"\0")
    return digest.hexdigest()


def held_out_sentences() -> list[str]:
    """About 400 plain English sentences, always the same: true statements, and descriptions of who did what."""
    statements = [item.sentences[0] for item in cloze_items()]
    descriptions: dict[str, list[str]] = {}
    for pair in minimal_pairs():
        descriptions.setdefault(pair.phenomenon, []).append(pair.good)
    return list(dict.fromkeys(statements + [text for found in descriptions.values() for text in found[:32]]))


@torch.no_grad()
def embed_texts(
    model: "Aligner", modality: str, texts: list[str], batch_size: int = 64
) -> tuple[Float[Tensor, "texts width"], Float[Tensor, "texts dim"]]:
    """(the tower's pooled outputs, unit vectors in the shared space), on the CPU in float32."""
    device, preprocess = device_of(model), model.tower(modality).preprocess
    pooled, vectors = [], []
    for start in range(0, len(texts), batch_size):
        rows: list[Tensor | None] = [preprocess.prepare(text, None) for text in texts[start : start + batch_size]]
        values, mask = preprocess.collate(rows)
        batch = Values(torch.ones(len(rows), dtype=torch.bool), values, mask).to(device)
        output = model.encode(modality, batch).pooled
        pooled.append(output.float().cpu())
        vectors.append(torch.nn.functional.normalize(model.project(modality, output).float(), dim=-1).cpu())
    return torch.cat(pooled), torch.cat(vectors)
