"""The replay memory: which samples of the stream are kept, and where they lie."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmalign.batch import Batch, Embeddings
from mmalign.data.config import ShardData
from mmalign.data.index import ShardSet
from mmalign.data.scan import key_hash
from mmalign.model import Aligner
from mmalign.retention import ranks
from mmalign.retention.base import StagePlan
from mmalign.retention.generation import copy_samples, directory_bytes, remove_generations
from mmalign.retention.policies import ENTRY, Policy, Uniform
from mmalign.retention.pool import Pool
from mmalign.retention.store import SPLIT, Budget, Origin, modalities_of, sample_hash, split_key, stored_modalities


@dataclass
class Source:
    """A data set that samples came from: its name in the configuration, its shards' hash, and the modalities read.

    The same shards read as pictures with captions and as sounds with captions are two sources.
    """

    name: str
    sha256: str
    modalities: dict[str, str]

    @property
    def identity(self) -> str:
        """What stands for the data set in the hashes of its samples."""
        return f"{self.sha256}/{json.dumps(self.modalities, sort_keys=True)}"


@dataclass
class Part:
    """The samples of one stage and one source, which lie in one folder of the memory."""

    stage: int
    source: int
    directory: str


class Memory:
    """Keeps at most `capacity` samples in at most `capacity_bytes` on disk.

    While a stage runs, only an index grows: 44 bytes and a dictionary entry per candidate, at most two candidates per
    place. When it ends, the chosen samples are copied, compressed as they are, from the shards that the stage read and
    from the memory as it was, to `folder/after-STAGE/PART/memory-000000.tar`, …: a complete new generation. The one
    before it is deleted when the next stage begins, because until then a killed run may have to repeat the stage from
    it.

    All ranks hold the same index; rank 0 writes.

    Args:
        capacity: samples.
        capacity_bytes: of the tars and their indices; where it is smaller than what the samples take, the last in the
            policy's order go.
        policy: who stays; None means Uniform().
    """

    def __init__(self, capacity: int, capacity_bytes: int, policy: Policy | None = None) -> None:
        if capacity < 1 or capacity_bytes < 1:
            raise ValueError(f"a memory needs a capacity of at least 1, not {capacity} samples, {capacity_bytes} bytes")
        self.policy = policy or Uniform()
        self.capacity_bytes = capacity_bytes
        self.pool = Pool(capacity, self.policy)
        self.sources: list[Source] = []
        self.parts: list[Part] = []
        self.generation = 0
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self._number: dict[str, int] = {}
        self._identities: list[str] = []
        self._modalities: list[str] = []
        self._folder: Path | None = None

    def begin(self, plan: StagePlan, model: Aligner, folder: Path) -> None:
        """Get ready to observe a stage; drop what no run can need any more.

        Raises:
            ValueError: the names of two data sets do not tell their samples apart.
        """
        for name, other in permutations(plan.data, 2):
            if other.startswith(f"{name}/"):
                raise ValueError(
                    f"stages.{plan.name}.data: a sample {other}/KEY may be one of {name!r} or of {other!r}; rename one"
                )
        self._folder = folder
        self._modalities = sorted(model.modalities)
        self._number = {}
        for name, data in plan.data.items():
            source = Source(name, ShardSet.open(data.shards, data.split).sha256, modalities_of(model, data.modalities))
            if source not in self.sources:
                self.sources.append(source)
            self._number[name] = self.sources.index(source)
        self._identities = [source.identity for source in self.sources]
        if ranks.rank() == 0 and folder.exists():
            remove_generations(folder, self.generation)

    def observe(
        self, plan: StagePlan, batch: Batch, embeddings: Embeddings, beside: Mapping[str, Tensor] | None = None
    ) -> None:
        """Let the new rows of a step into the pool; replayed ones and language text are no candidates.

        Args:
            batch: this rank's rows.
            embeddings: of all ranks' rows.
            beside: by name, [batch of all ranks, dim]: kept with each row.
        """
        self.steps += 1
        scores = self.policy.score(embeddings)
        first = embeddings.rows[0] if embeddings.rows else 0
        rows, entries = self._candidates(plan, batch)
        if scores is not None:
            entries["score"] = scores[first:][rows].double().cpu().numpy()
        pieces = ranks.gather_objects((rows + first, entries))
        rows = np.concatenate([piece[0] for piece in pieces])
        entries = np.concatenate([piece[1] for piece in pieces])
        self.seen[plan.name] += len(rows)
        kept = {name: values[rows].cpu().float().numpy() for name, values in (beside or {}).items()}
        self.pool.add(entries, kept)

    def _candidates(self, plan: StagePlan, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(row numbers, ENTRY) of this rank's new rows."""
        skipped = np.zeros(len(batch), bool)
        for flags in (batch.replayed, batch.language):
            if flags is not None:
                skipped |= flags.cpu().numpy()
        bits = np.zeros(len(batch), np.int64)
        for name, values in batch.modalities.items():
            bits |= values.present.cpu().numpy().astype(np.int64) << self._modalities.index(name)
        rows = np.flatnonzero(~skipped)
        split = [split_key(batch.keys[row], self._number) for row in rows.tolist()]
        sources = [self._number[name] for name, _ in split]
        named = [(self._identities[source], key) for source, (_, key) in zip(sources, split, strict=True)]
        entries = np.zeros(len(rows), ENTRY)
        entries["hash"] = np.array([sample_hash(plan.seed, identity, key) for identity, key in named], np.uint64)
        entries["key"] = np.array([key_hash(key) for _, key in named], np.uint64)
        entries["source"] = sources
        entries["stage"], entries["step"], entries["modalities"] = plan.index, self.steps, bits[rows]
        return rows, entries

    # --- the end of a stage --------------------------------------------------------------------------------------

    def commit(self, plan: StagePlan, model: Aligner) -> None:
        """Choose, copy, and make the new generation the current one."""
        assert self._folder is not None
        entries = self.pool.entries
        origins = self._origins(plan)
        done = None
        if ranks.rank() == 0:
            target = self._folder / f"after-{plan.index:02d}"
            done = copy_samples(entries, self.pool.order(), origins, Budget(self.capacity_bytes), target, plan.limits)
        fits, keys = ranks.from_first(done)
        kept = sorted({(stage, source) for stage, source in entries[["stage", "source"]][fits].tolist()})
        self.parts = [Part(stage, source, origins[stage, source].directory) for stage, source in kept]
        self.pool.keep(entries["hash"][fits])
        self.pool.entries["key"] = keys[fits]
        self.generation = plan.index

    def _origins(self, plan: StagePlan) -> dict[tuple[int, int], Origin]:
        """By (stage, source): the folder of the last generation, or the shards that this stage read."""
        origins = {}
        for part in self.parts:
            folder = self._part_folder(part)
            modalities = stored_modalities(self.sources[part.source].modalities)
            origins[part.stage, part.source] = Origin(part.directory, folder, SPLIT, modalities)
        for name, data in plan.data.items():
            place = plan.index, self._number[name]
            if place not in origins:
                directory = f"stage-{place[0]:02d}-data-{place[1]:02d}-" + re.sub(r"\W+", "-", name)
                modalities = self.sources[place[1]].modalities
                origins[place] = Origin(directory, Path(data.shards), data.split, modalities)
        return origins

    def _part_folder(self, part: Part, folder: Path | None = None) -> Path:
        folder = folder or self._folder
        assert folder is not None
        return folder / f"after-{self.generation:02d}" / part.directory

    # --- the next stage ------------------------------------------------------------------------------------------

    def data(self, folder: Path) -> dict[str, tuple[ShardData, int]]:
        """The samples of the current generation: by name of the part, what a stream reads, and how many there are.

        Raises:
            FileNotFoundError: a folder of the memory is gone.
        """
        found = {}
        entries = self.pool.entries
        for part in self.parts:
            here = self._part_folder(part, folder)
            if not here.is_dir():
                raise FileNotFoundError(f"{here}: the replay memory that belongs to this run's checkpoint is gone")
            count = int(((entries["stage"] == part.stage) & (entries["source"] == part.source)).sum())
            modalities = stored_modalities(self.sources[part.source].modalities)
            data = ShardData(str(here), SPLIT, modalities, replayed=True)
            found[part.directory] = data, count
        return found

    def places(self) -> dict[tuple[str, int], int]:
        """(name of the part, hash of the stored key) -> index in `pool.entries`, for the current generation."""
        names = {(part.stage, part.source): part.directory for part in self.parts}
        return {
            (names[stage, source], key): i
            for i, (key, stage, source) in enumerate(self.pool.entries[["key", "stage", "source"]].tolist())
        }

    def bytes_stored(self) -> int:
        """On disk, and of the index."""
        disk = 0
        if self._folder is not None:
            disk = directory_bytes(self._folder / f"after-{self.generation:02d}")
        beside = sum(values.nbytes for values in self.pool.beside.values())
        return disk + self.pool.entries.nbytes + beside

    def state_dict(self) -> dict[str, Any]:
        return {
            "pool": self.pool.state_dict(),
            "sources": [asdict(source) for source in self.sources],
            "parts": [asdict(part) for part in self.parts],
            "generation": self.generation,
            "steps": self.steps,
            "seen": dict(self.seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; nothing happens for an empty state, that of a run without this memory."""
        if not state:
            return
        self.pool.load_state_dict(state["pool"])
        self.sources = [Source(**source) for source in state["sources"]]
        self.parts = [Part(**part) for part in state["parts"]]
        self.generation, self.steps = state["generation"], state["steps"]
        self.seen = Counter(state["seen"])
