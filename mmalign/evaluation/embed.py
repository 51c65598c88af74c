"""Embedding a data set for evaluation: every variant of every modality, and the fusion of what a sample has."""

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmalign.data.config import ShardData
from mmalign.data.faults import report_faults
from mmalign.data.precompute import open_or_build
from mmalign.data.sample import DEFAULT_MEMBERS
from mmalign.data.variants import VariantInfo, VariantLoader
from mmalign.data.workers import worth_starting
from mmalign.evaluation.ranks import first_rank_first, gather_objects, rank_and_world

if TYPE_CHECKING:
    from mmalign.model import Aligner

MAIN_LANGUAGES = ("", "en")


@dataclass(frozen=True)
class Embedded:
    """Rows of one modality of a data set, on the CPU, sorted by sample and variant.

    Attributes:
        vectors: unit vectors in the shared space.
        pooled: the tower's own outputs, when they were asked for.
        infos: where each row comes from.
        samples: of the data set, including those without this modality.
    """

    vectors: Float[Tensor, "rows dim"]
    infos: list[VariantInfo]
    samples: int
    pooled: Float[Tensor, "rows width"] | None = None

    @property
    def group(self) -> Int[Tensor, " rows"]:
        return torch.tensor([info.group for info in self.infos], dtype=torch.int64)

    @property
    def present(self) -> set[int]:
        """The samples that have a row."""
        return {info.sample for info in self.infos}

    @property
    def languages(self) -> dict[str, int]:
        """Rows by language code, without those that have none."""
        codes = [info.language for info in self.infos if info.language]
        return {code: codes.count(code) for code in sorted(set(codes))}

    def select(self, mask: Bool[Tensor, " rows"]) -> "Embedded":
        """Only these rows."""
        infos = [info for info, wanted in zip(self.infos, mask.tolist(), strict=True) if wanted]
        pooled = None if self.pooled is None else self.pooled[mask]
        return replace(self, vectors=self.vectors[mask], infos=infos, pooled=pooled)

    def of_language(self, code: str) -> "Embedded":
        """Only the rows in this language."""
        return self.select(torch.tensor([info.language == code for info in self.infos], dtype=torch.bool))

    def one_per_sample(self) -> "Embedded":
        """One row for each sample: the first without a language or in English, else the first."""
        chosen: dict[int, int] = {}
        for row, info in enumerate(self.infos):
            best = chosen.setdefault(info.sample, row)
            if info.language in MAIN_LANGUAGES and self.infos[best].language not in MAIN_LANGUAGES:
                chosen[info.sample] = row
        mask = torch.zeros(len(self.infos), dtype=torch.bool)
        mask[list(chosen.values())] = True
        return self.select(mask)


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def bound_modalities(model: "Aligner", data: ShardData) -> dict[str, str]:
    """Modality -> members, of those that the model has."""
    if data.modalities is None:
        return {name: DEFAULT_MEMBERS[model.tower(name).preprocess.kind] for name in model.encoders}
    return {name: members for name, members in data.modalities.items() if name in model.encoders}


@torch.no_grad()
def embed_modality(
    model: "Aligner",
    data: ShardData,
    modality: str,
    batch_size: int = 64,
    dataset: str = "",
    workers: int | None = None,
    pooled: bool = False,
) -> Embedded:
    """Every variant of one modality. Ranks share the work, and each gets all rows, each once.

    Args:
        dataset: stands before every key; "" means the split's name.
        workers: processes that read and decode; None takes those of the run (see Aligner.reading), but none for what
            is read from a feature cache, nor for data sets so small that starting them takes longer.
        pooled: keep the tower's own outputs as well.
    """
    rank, world = rank_and_world()
    device = device_of(model)
    data = replace(data, modalities={modality: bound_modalities(model, data)[modality]})
    tower, reading = model.tower(modality), model.reading
    features = None
    if modality in reading.cached:
        most = reading.workers if workers is None else workers
        features = first_rank_first(
            lambda: open_or_build(data, modality, tower, limits=reading.limits, batch_size=batch_size, num_workers=most)
        )
    loader = VariantLoader(
        data, modality, tower.preprocess, batch_size, workers or 0, reading.limits, dataset, features, rank, world
    )
    if workers is None and features is None:
        loader.num_workers = worth_starting(reading.workers, loader.samples // world)
    vectors, outputs, infos = [torch.zeros(0, model.dim)], [torch.zeros(0, tower.width)], []
    for values, batch_infos in loader:
        values = values.to(device)
        output = model.encode(modality, values).pooled if values.features is None else values.features
        projected = model.project(modality, output)
        vectors.append(nn.functional.normalize(projected.float(), dim=-1).cpu())
        if pooled:
            outputs.append(output.float().cpu())
        infos += batch_infos
    if loader.faults:
        report_faults(loader.faults)
        warnings.warn(
            f"{data.shards}: {len(loader.faults)} {modality} items cannot be used: {loader.faults[0]}", stacklevel=2
        )
    parts = gather_objects((torch.cat(vectors), torch.cat(outputs), infos))
    everything = [info for part in parts for info in part[2]]
    order = sorted(range(len(everything)), key=lambda i: (everything[i].sample, everything[i].number))
    return Embedded(
        vectors=torch.cat([part[0] for part in parts])[order],
        infos=[everything[i] for i in order],
        samples=loader.samples,
        pooled=torch.cat([part[1] for part in parts])[order] if pooled else None,
    )


@torch.no_grad()
def fuse(model: "Aligner", parts: dict[str, Embedded], complete: bool, batch_size: int = 1024) -> Embedded:
    """One fused row for each sample that has any (or, when `complete`, all) of these modalities.

    Of several variants the first in the main language takes part. The infos are those of the first modality present.
    """
    single = {name: part.one_per_sample() for name, part in parts.items()}
    present = [part.present for part in single.values()]
    samples = sorted(set.intersection(*present) if complete else set.union(*present))
    place = {sample: row for row, sample in enumerate(samples)}
    vectors, masks = {}, {}
    infos: dict[int, VariantInfo] = {}
    for name, part in single.items():
        vectors[name], masks[name] = torch.zeros(len(samples), model.dim), torch.zeros(len(samples), dtype=torch.bool)
        for row, info in enumerate(part.infos):
            if info.sample in place:
                vectors[name][place[info.sample]], masks[name][place[info.sample]] = part.vectors[row], True
        for info in part.infos:
            infos.setdefault(info.sample, info)
    device = device_of(model)
    fused = [torch.zeros(0, model.dim)]
    for start in range(0, len(samples), batch_size):
        rows = slice(start, start + batch_size)
        some = {name: rows_of[rows].to(device) for name, rows_of in vectors.items()}
        fused.append(model.fuse(some, {name: mask[rows].to(device) for name, mask in masks.items()}).float().cpu())
    return Embedded(torch.cat(fused), [infos[s] for s in samples], next(iter(parts.values())).samples)
