"""The typed contracts between data, model and losses.

Legend of the axis names that stand in every shape annotation of mmalign:

    batch     samples of this process's batch (of all processes', after gathering)
    length    positions of a sequence: patches, audio frames, text tokens
    width     channels of one encoder
    dim       channels of the shared embedding space
    queries   rows of a retrieval query set
    gallery   rows of a retrieval gallery

Masks are True where there is something: a real position, a present modality.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Moved = TypeVar("Moved", bound="_Movable")  # typing.Self is not understood by the machine that checks shapes


class _Movable:
    """Lets a dataclass of tensors follow its model to a device; Lightning calls `to` on whatever a loader yields."""

    def map_tensors(self: Moved, function: Callable[[Tensor], Tensor]) -> Moved:
        """Apply `function` to every tensor, also inside mappings and nested contracts; return a new object."""

        def visit(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, _Movable):
                return value.map_tensors(function)
            if isinstance(value, Mapping):
                return {key: visit(item) for key, item in value.items()}
            return value

        changes = {f.name: visit(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changes)  # type: ignore[type-var]

    def to(self: Moved, device: torch.device | str, non_blocking: bool = False) -> Moved:
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Moved) -> Moved:
        return self.map_tensors(lambda tensor: tensor.pin_memory())


@dataclass  # not frozen: Lightning's double precision refuses to convert frozen ones
class Values(_Movable):
    """One modality of a batch. Treated as immutable.

    `values` is what the encoder's `forward` takes: pictures [batch, 3, height, width], waveforms [batch, samples],
    token ids [batch, length], series [batch, length, channels]. Rows of absent samples hold zeros. When the tower is
    frozen and its outputs are cached, `features` holds its pooled outputs, and `values` is None.
    """

    present: Bool[Tensor, " batch"]
    values: Tensor | None = None
    mask: Bool[Tensor, "batch length"] | None = None
    features: Float[Tensor, "batch width"] | None = None

    def __post_init__(self) -> None:
        if (self.values is None) == (self.features is None):
            raise ValueError("a modality of a batch holds either values or cached features, not both and not neither")


@dataclass
class Batch(_Movable):
    """Samples of a batch, each with any non-empty subset of the modalities. Treated as immutable.

    Attributes:
        keys: one name per sample, stable across modalities, epochs and runs: "DATASET/KEY".
        modalities: values by modality name.
        group: samples with the same number are positives of each other (the same item twice, the same caption).
        language: rows that are plain language text (for next-token losses), not a caption; None means no such rows.
        replayed: rows that come from a replay memory; None means no such rows.
        faults: what could not be used while this batch was made (see mmalign.data.faults).
    """

    keys: list[str]
    modalities: dict[str, Values]
    group: Int[Tensor, " batch"]
    language: Bool[Tensor, " batch"] | None = None
    replayed: Bool[Tensor, " batch"] | None = None
    faults: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, start: int, stop: int) -> "Batch":
        """The samples start … stop-1."""

        def part(values: Values) -> Values:
            return values.map_tensors(lambda tensor: tensor[start:stop])

        return Batch(
            keys=self.keys[start:stop],
            modalities={name: part(values) for name, values in self.modalities.items()},
            group=self.group[start:stop],
            language=None if self.language is None else self.language[start:stop],
            replayed=None if self.replayed is None else self.replayed[start:stop],
            faults=self.faults if start == 0 else [],
        )


@dataclass(frozen=True)
class Tokens(_Movable):
    """What an encoder returns.

    Attributes:
        sequence: one vector per position; the encoder's `axis` says what a position is.
        mask: which positions are real.
        pooled: one vector per sample.
    """

    sequence: Float[Tensor, "batch length width"]
    mask: Bool[Tensor, "batch length"]
    pooled: Float[Tensor, "batch width"]

    @classmethod
    def mean_pooled(
        cls, sequence: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> "Tokens":
        """Pool by the mean over real positions; a row without any pools to zero."""
        if mask is None:
            mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
        weight = mask.to(sequence.dtype).unsqueeze(-1)
        pooled = (sequence * weight).sum(1) / weight.sum(1).clamp(min=1)
        return cls(sequence, mask, pooled)


@dataclass(frozen=True)
class Embeddings(_Movable):
    """What losses see: one L2-normalised vector per sample and modality ("fused" among them, where there is a fusion).

    Attributes:
        vectors: by modality name; rows of absent samples are zero.
        present: by modality name; "fused" is present wherever any modality is, except in rows of language text.
        group: as in Batch.
        likelihoods: by modality name, for the rows of language text: negative log-likelihood in nats of a row, and the
            number of tokens predicted in it, as [batch, 2]; zero for other rows. For next-token losses.
        pooled: the towers' own pooled outputs, before projection, of the rows that this process answers for, also after
            gathering; absent rows are zero. For retention.
        rows: the rows that this process answers for, as (start, stop); None means all. After gathering over ranks,
            every rank holds all rows (of `pooled` its own), and sums only over its own anchors.
        replayed: as in Batch.
    """

    vectors: dict[str, Float[Tensor, "batch dim"]]
    present: dict[str, Bool[Tensor, " batch"]]
    group: Int[Tensor, " batch"]
    likelihoods: dict[str, Float[Tensor, "batch 2"]] = field(default_factory=dict)
    pooled: dict[str, Float[Tensor, "own _"]] = field(default_factory=dict)
    rows: tuple[int, int] | None = None
    replayed: Bool[Tensor, " batch"] | None = None
