"""The index of a memory: its candidates, at most a fixed number of them, and what is kept beside each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmalign.retention.policies import ENTRY, Policy


class Pool:
    """Collects candidates and forgets those that the policy does not want.

    Candidates are let in until there are twice as many as may stay, and then ordered: a sample costs O(log capacity) on
    average, and the pool never holds more than twice the capacity and one batch.

    Args:
        capacity: how many stay.
        policy: who.
    """

    def __init__(self, capacity: int, policy: Policy) -> None:
        self.capacity = capacity
        self.policy = policy
        self._rows = np.zeros(0, ENTRY)
        self._beside: dict[str, np.ndarray] = {}
        self._size = 0
        self._place: dict[int, int] = {}
        self._settled = True

    def __len__(self) -> int:
        return min(self._size, self.capacity)

    @property
    def entries(self) -> np.ndarray:
        """Those who stay (ENTRY, [entries]), sorted by hash."""
        self._settle()
        return self._rows[: self._size]

    @property
    def beside(self) -> dict[str, np.ndarray]:
        """What is kept for each of `entries`, by name: [entries, dim], float16; zeros where nothing was given."""
        self._settle()
        return {name: values[: self._size] for name, values in self._beside.items()}

    def add(self, entries: np.ndarray, beside: Mapping[str, np.ndarray] | None = None) -> None:
        """Let candidates in; for one that is there already, step, score and what is kept beside it are replaced.

        Args:
            entries: ENTRY, [entries].
            beside: by name, [entries, dim].
        """
        if len(entries) == 0:
            return
        _, last = np.unique(entries["hash"][::-1], return_index=True)
        chosen = len(entries) - 1 - last
        entries = entries[chosen]
        values = {name: given[chosen] for name, given in (beside or {}).items()}
        places = np.array([self._place.get(hashed, -1) for hashed in entries["hash"].tolist()])
        known, new = places >= 0, places < 0
        self._rows["step"][places[known]] = entries["step"][known]
        self._rows["score"][places[known]] = entries["score"][known]
        count = int(new.sum())
        self._reserve(self._size + count, values)
        places[new] = np.arange(self._size, self._size + count)
        self._rows[self._size : self._size + count] = entries[new]
        self._place.update(zip(entries["hash"][new].tolist(), places[new].tolist(), strict=True))
        for name, given in values.items():
            self._beside[name][places] = given
        self._size += count
        self._settled = False
        if self._size >= 2 * self.capacity:
            self._settle()

    def keep(self, hashes: np.ndarray) -> None:
        """Forget everyone else."""
        self._settle()
        self._take(np.flatnonzero(np.isin(self._rows["hash"][: self._size], hashes)))

    def order(self) -> np.ndarray:
        """`entries` from the one that stays longest to the one that goes first, as indices."""
        return self.policy.order(self.entries)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors: all candidates, sorted by hash. To save them changes nothing: who would go now may come again,
        and who would stay may get another score.
        """
        order = np.argsort(self._rows["hash"][: self._size], kind="stable")
        columns = {}
        for name in ENTRY.names or ():
            column = self._rows[name][order]
            # torch has few operations on unsigned numbers: the same bits as signed ones
            columns[name] = torch.from_numpy(column if column.dtype.kind == "f" else column.astype("<i8"))
        beside = {name: torch.from_numpy(values[order]) for name, values in self._beside.items()}
        return {"entries": columns, "beside": beside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        columns = {name: column.numpy() for name, column in state["entries"].items()}
        self._rows = np.zeros(len(columns["hash"]), ENTRY)
        for name, column in columns.items():
            self._rows[name] = column.astype(ENTRY[name])
        self._beside = {name: values.numpy().copy() for name, values in state["beside"].items()}
        self._size = len(self._rows)
        self._take(np.arange(self._size))
        self._settled = False

    def _reserve(self, size: int, given: Mapping[str, np.ndarray]) -> None:
        rows = len(self._rows)
        if size > rows:
            rows = max(size, 2 * rows)
            self._rows = np.concatenate([self._rows, np.zeros(rows - len(self._rows), ENTRY)])
        for name, values in given.items():
            self._beside.setdefault(name, np.zeros((0, values.shape[1]), np.float16))
        for name, kept in self._beside.items():
            if len(kept) < rows:
                more = np.zeros((rows - len(kept), kept.shape[1]), np.float16)
                self._beside[name] = np.concatenate([kept, more])

    def _settle(self) -> None:
        if self._settled:
            return
        entries = self._rows[: self._size]
        chosen = self.policy.order(entries)[: self.capacity] if self._size > self.capacity else np.arange(self._size)
        # sorted by hash, so that the state does not depend on the order in which they came
        self._take(chosen[np.argsort(entries["hash"][chosen], kind="stable")])

    def _take(self, chosen: np.ndarray) -> None:
        self._rows = self._rows[chosen]
        self._beside = {name: values[chosen] for name, values in self._beside.items()}
        self._size = len(chosen)
        self._place = {hashed: i for i, hashed in enumerate(self._rows["hash"].tolist())}
        self._settled = True
