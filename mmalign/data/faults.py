"""What cannot be used, why, and the limits that say so before anything is decoded."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmalign.checks import positive


@dataclass(frozen=True)
class Limits:
    """What a sample may ask for. Compared with sizes in headers, before any memory is taken for the decoded value.

    Attributes:
        max_sample_bytes: all members of a sample with their tar headers.
        max_member_bytes: one member, as stored.
        max_text_bytes: one text or json member, or one caption.
        max_pixels: width times height of a picture.
        max_audio_seconds: duration of a recording.
        max_audio_values: its frames times its channels.
        max_array_values: numbers in an `.npy` array.
    """

    max_sample_bytes: int = 2**28
    max_member_bytes: int = 2**27
    max_text_bytes: int = 2**20
    max_pixels: int = 2**25
    max_audio_seconds: float = 600.0
    max_audio_values: int = 2**26
    max_array_values: int = 2**26

    def __post_init__(self) -> None:
        positive(**asdict(self))


@dataclass(frozen=True)
class Fault:
    """One place in the data that cannot be used.

    Attributes:
        shard: name of the tar.
        key: of the sample; "" when the damage belongs to the shard and not to one sample; "#" and the 16 hexadecimal
            digits of the index entry when the sample cannot be read so far as to know its name.
        offset: byte in the shard where the sample, or the damage, starts.
        stage: what failed: "index", "read", "decode" or "prepare".
        error: one sentence.
        dataset, split: where the sample belongs.
    """

    shard: str
    key: str
    offset: int
    stage: str
    error: str
    dataset: str = ""
    split: str = ""

    def __str__(self) -> str:
        sample = f", sample {self.key!r}" if self.key else ""
        return f"{self.shard}{sample}, byte {self.offset}: {self.error} ({self.stage})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for `Batch.faults`."""
        return asdict(self)


class SampleError(Exception):
    """A sample that cannot be used. `stage` says what failed (see Fault)."""

    def __init__(self, error: str, stage: str = "decode") -> None:
        super().__init__(error)
        self.stage = stage


class QuarantineLog:
    """Appends faults to a file of JSON lines, each (dataset, split, shard, key, stage) once, also over resumptions.

    Several ranks may write to one file; each knows what the others wrote once it has called `refresh`.

    Attributes:
        count: faults in the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._known: set[tuple[Any, ...]] = set()
        self._read_bytes = 0
        if self.path.exists():
            data = self.path.read_bytes()
            # A run that was killed while writing leaves half a line behind; it is written anew when its fault recurs.
            complete = data.rfind(b"\n") + 1
            if complete != len(data):
                with open(self.path, "r+b") as file:
                    file.truncate(complete)
        self.refresh()

    @property
    def count(self) -> int:
        return len(self._known)

    def count_of(self, splits: Iterable[tuple[str, str]]) -> int:
        """Faults of these (data set, split)."""
        wanted = set(splits)
        return sum(identity[:2] in wanted for identity in self._known)

    def refresh(self) -> None:
        """Read what was written since, by this process or another one."""
        if not self.path.exists() or self.path.stat().st_size == self._read_bytes:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(new)
        self._known |= {self._identity(json.loads(line)) for line in new.decode("utf-8").splitlines()}

    def add(self, faults: Iterable[Fault | dict[str, Any]]) -> int:
        """Write those that are new; returns how many were."""
        faults = list(faults)
        if faults:
            self.refresh()
        lines = []
        for fault in faults:
            record = fault.to_dict() if isinstance(fault, Fault) else dict(fault)
            identity = self._identity(record)
            if identity not in self._known:
                self._known.add(identity)
                lines.append(json.dumps(record) + "\n")
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One write in append mode, so that the lines of several ranks do not mix.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, "".join(lines).encode("utf-8"))
            finally:
                os.close(descriptor)
        return len(lines)

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Within it, what `report_faults` is told is added here."""
        token = _reporting.set(self)
        try:
            yield
        finally:
            _reporting.reset(token)

    @staticmethod
    def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
        place = record["offset"] if not record["key"] else None
        return (record["dataset"], record["split"], record["shard"], record["key"], record["stage"], place)


_reporting: ContextVar[QuarantineLog | None] = ContextVar("_reporting", default=None)


def report_faults(faults: Iterable[Fault | dict[str, Any]]) -> None:
    """Add to the quarantine of the run within which this is called; outside of a run, nothing is written.

    For readers that hand out rows and no batches, which carry their faults with them: evaluations and feature caches.
    """
    log = _reporting.get()
    if log is not None:
        log.add(faults)
