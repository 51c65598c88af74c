"""Dark experience replay: replayed samples should look as they looked when they were stored."""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.batch import Batch, Embeddings
from mmalign.data.scan import key_hash
from mmalign.model import Aligner, components_behind
from mmalign.retention import ranks
from mmalign.retention.base import Retention, StagePlan
from mmalign.retention.replay import Replay
from mmalign.retention.similarity import distance, pair_divergence
from mmalign.retention.store import split_key


class DER(Retention):
    """Replay, with the vectors of all modalities that the model gave a sample when it was last seen new.

    Loss: embedding_weight · mean over replayed rows and modalities of ‖v − v_stored‖², plus similarity_weight · mean
    KL(stored ‖ now) of the distributions softmax(cosine / temperature) over the replayed rows of the batch, for every
    pair of modalities and both directions. The replay's own losses stay active, as in DER++; `past_losses: 0` in the
    replay leaves them out, as in DER.

    Stored: what Replay stores, and 2 bytes per channel and modality of each sample (512 bytes for 128 channels of both
    sides), in memory and in the checkpoint.

    Cost: as Replay; the terms cost one matrix product of the replayed rows.

    Paper: Buzzega et al. 2020, "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS.
    Its targets are logits; here, they are the vectors on both sides and the similarities between them.

    Example:
        retention:
          der:
            class_path: mmalign.retention.DER
            init_args:
              replay: {class_path: mmalign.retention.Replay, init_args: {capacity: 1000}}
              embedding_weight: 1.0
    """

    def __init__(
        self,
        replay: Replay,
        embedding_weight: float = 1.0,
        similarity_weight: float = 0.0,
        temperature: float = 0.07,
    ) -> None:
        """
        Args:
            replay: the memory, its share and its policy.
            embedding_weight, similarity_weight: of the two terms.
            temperature: divides the cosines of the second.
        """
        self.replay = replay
        self.embedding_weight = embedding_weight
        self.similarity_weight = similarity_weight
        self.temperature = temperature
        self._places: dict[tuple[str, int], int] = {}
        self._targets: dict[str, Tensor] = {}

    @property
    def _name(self) -> str:
        return self.name or "der"

    @property
    def acts_at_once(self) -> bool:
        return self.replay.acts_at_once

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        self.replay.name = self._name
        self.replay.prepare(plan, model)

    def reaches(self, plan: StagePlan, model: Aligner) -> set[str]:
        stored = {glob for modality in self.replay.memory.pool.beside for glob in components_behind(modality)}
        return stored | self.replay.reaches(plan, model)

    def begin(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        self.replay.begin(plan, model, losses)
        # a copy: while the stage runs, new samples may push out old ones that are still replayed
        self._places = self.replay.memory.places()
        beside = self.replay.memory.pool.beside
        self._targets = {name: torch.from_numpy(values.copy()) for name, values in beside.items()}

    def penalty(self, model: Aligner, batch: Batch, embeddings: Embeddings) -> dict[str, Tensor]:
        terms = self.replay.penalty(model, batch, embeddings)
        old = self._stored(batch, embeddings)
        names = list(old.vectors)
        if self.embedding_weight:
            value = distance(embeddings, old, names)
            terms[f"{self._name}.embedding"] = self.embedding_weight * value
        if self.similarity_weight:
            pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
            value = pair_divergence(embeddings, old, pairs, self.temperature)
            terms[f"{self._name}.similarity"] = self.similarity_weight * value
        return terms

    def _stored(self, batch: Batch, embeddings: Embeddings) -> Embeddings:
        """What is stored for the replayed rows of all ranks, at the rows' places; other rows are absent."""
        found: list[tuple[int, int]] = []
        first = embeddings.rows[0] if embeddings.rows else 0
        replayed = [] if batch.replayed is None else batch.replayed.nonzero().squeeze(1).tolist()
        parts = {f"{self._name}.{part.directory}": part.directory for part in self.replay.memory.parts}
        for row in replayed:
            source, key = split_key(batch.keys[row], parts)
            place = self._places.get((parts.get(source, ""), key_hash(key)))
            if place is not None:
                found.append((first + row, place))
        everyone = [pair for pairs in ranks.gather_objects(found) for pair in pairs]
        device = embeddings.group.device
        rows = torch.tensor([row for row, _ in everyone], dtype=torch.long, device=device)
        places = torch.tensor([place for _, place in everyone], dtype=torch.long)
        vectors, present = {}, {}
        for name, targets in self._targets.items():
            if name in embeddings.vectors:
                blank = torch.zeros_like(embeddings.vectors[name].detach())
                vectors[name] = blank.index_copy(0, rows, targets[places].to(blank))
                present[name] = vectors[name].any(1) & embeddings.present[name]
        return Embeddings(vectors, present, embeddings.group)

    def after_step(self, plan: StagePlan, model: Aligner, batch: Batch, embeddings: Embeddings) -> None:
        vectors = {name: embeddings.vectors[name] for name in model.modalities if name in embeddings.vectors}
        self.replay.memory.observe(plan, batch, embeddings, vectors)

    def end(self, plan: StagePlan, model: Aligner, losses: dict[str, nn.Module]) -> None:
        self.replay.end(plan, model, losses)
        self._places, self._targets = {}, {}

    def bytes_stored(self) -> int:
        return self.replay.bytes_stored()

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state)
