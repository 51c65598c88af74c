"""Reading for evaluation: every member of a split that can stand for a modality, in order, without augmentation."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.data import Dataset

from mmalign.batch import Values
from mmalign.data.bound import BoundData
from mmalign.data.collate import collate, collate_features, prepare
from mmalign.data.config import ShardData
from mmalign.data.faults import Fault, Limits, SampleError
from mmalign.data.features import FeatureCache
from mmalign.data.sample import SampleInfo, Variant
from mmalign.data.select import group_of, variants_in
from mmalign.data.workers import ordered
from mmalign.encoders.base import Preprocess


@dataclass(frozen=True)
class VariantInfo:
    """Where a row of an evaluation comes from.

    Attributes:
        sample: its number in the split.
        key: "DATASET/KEY".
        group: samples with the same number are positives of each other; the same numbers as in training batches.
        language: a code, or "".
        name: of the member: "png", "speech.fr.flac", "captions[fr]#0".
        number: of the variant among those of the sample.
    """

    sample: int
    key: str
    group: int
    language: str
    name: str
    number: int


@dataclass
class Block:
    """What a worker makes of some consecutive samples; `samples` are those that could be read."""

    batches: list[tuple[Values, list[VariantInfo]]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    missing: int = 0
    samples: dict[int, SampleInfo] = field(default_factory=dict)


class VariantLoader:
    """Iterates over (Values, infos): all variants of one modality of a split, in the order of the split.

    Attributes (complete when an iteration has ended):
        faults: variants and samples that could not be used.
        missing: samples that do not have the modality.
        samples: of the data set, including these.

    Args:
        data: the data set; its `modalities` give the pattern, or the default of the encoder's kind.
        modality: name of the modality.
        preprocess: of its encoder.
        batch_size: at most so many rows in a batch.
        num_workers: processes that read; 0 reads in this one.
        limits: what counts as unusable.
        name: of the data set: stands in keys and faults.
        features: cached outputs that are used in place of values; nothing is read.
        rank, world: this process reads every `world`-th block of samples; all ranks together read each once.
    """

    def __init__(
        self,
        data: ShardData,
        modality: str,
        preprocess: Preprocess,
        batch_size: int = 64,
        num_workers: int = 0,
        limits: Limits | None = None,
        name: str = "",
        features: FeatureCache | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.num_workers = num_workers
        bound = BoundData.for_modality(name or data.split, data, modality, preprocess, limits or Limits())
        self._blocks = VariantBlocks(bound, modality, preprocess, batch_size, limits or Limits(), features)
        self._chosen = range(rank, len(self._blocks), world)
        self._known = bound.known_faults if rank == 0 else []  # of the index: told once
        self.samples = bound.count
        self.faults: list[Fault] = []
        self.missing = 0

    def __iter__(self) -> Iterator[tuple[Values, list[VariantInfo]]]:
        self.faults, self.missing = list(self._known), 0
        for block in ordered(self._blocks, self._chosen, self.num_workers):
            self.faults += block.faults
            self.missing += block.missing
            yield from block.batches


class VariantBlocks(Dataset):
    """Item i: the variants of samples i * batch_size … (i + 1) * batch_size - 1, as batches."""

    def __init__(
        self,
        data: BoundData,
        modality: str,
        preprocess: Preprocess,
        batch_size: int,
        limits: Limits,
        features: FeatureCache | None = None,
    ) -> None:
        self.data, self.preprocess, self.limits, self.features = data, preprocess, limits, features
        self.pattern = data.patterns[modality]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.data.count // self.batch_size)

    def __getitem__(self, number: int) -> Block:
        block = Block()
        rows: list[Tensor] = []
        infos: list[VariantInfo] = []
        start = number * self.batch_size
        for index in range(start, min(start + self.batch_size, self.data.count)):
            for row, info in self._variants(index, block):
                rows.append(row)
                infos.append(info)
                if len(rows) == self.batch_size:
                    block.batches.append((self._values(rows), infos))
                    rows, infos = [], []
        if rows:
            block.batches.append((self._values(rows), infos))
        return block

    def _variants(self, index: int, block: Block) -> Iterator[tuple[Tensor, VariantInfo]]:
        data, features = self.data, self.features
        info = None if features is None else features.sample(index)
        variants: list[Variant] = []
        if info is None:
            try:
                sample = data.samples.read(index)
                group = group_of(sample, self.limits)
                variants = variants_in(sample, self.pattern, self.limits)
            except SampleError as error:
                block.faults.append(data.samples.fault(index, error, data.name))
                return
            info = SampleInfo(sample.key, group, [(variant.name, variant.language) for variant in variants])
        block.samples[index] = info
        block.missing += not info.variants
        for i, (name, language) in enumerate(info.variants):
            try:
                if features is not None:
                    row = features.row(index, i)
                else:
                    row = prepare(self.preprocess, variants[i], self.limits, None)
            except SampleError as error:
                block.faults.append(data.samples.fault(index, error, data.name))
                continue
            yield row, VariantInfo(index, data.key(info), data.group(info.group), language, name, i)

    def _values(self, rows: list[Tensor]) -> Values:
        if self.features is not None:
            return collate_features(list(rows), self.features.width)
        return collate(self.preprocess, list(rows))
