"""What a YAML says about one data set of a stage or an evaluation."""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from mmalign.checks import at_least, positive
from mmalign.data.faults import Limits

# One letter before the colon would be a drive; longer ones are schemes: pipe:, file:, gs:, https:, hf: …
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


@dataclass
class ShardData:
    """One data set of a stage or an evaluation.

    Attributes:
        shards: a shard directory (tars and `index/`, see `mmalign data`). Local paths only.
        split: the part of it to read.
        modalities: modality name -> the members that stand for it, as a pattern (see RawSample.variants); None binds
            every encoder of the model with the default pattern of its kind.
        weight: how often it is drawn, relative to the other data sets of the stage.
        language: its rows are plain language text, for next-token losses, not captions.
        limit: only the first so many samples; None means all.
        replayed: its rows come from a replay memory.
    """

    shards: str
    split: str = "train"
    modalities: dict[str, str] | None = None
    weight: float = 1.0
    language: bool = False
    limit: int | None = None
    replayed: bool = False

    def __post_init__(self) -> None:
        refuse_url(self.shards)
        positive(weight=self.weight)
        at_least(1, limit=self.limit)
        if self.modalities is not None and not self.modalities:
            raise ValueError(f"modalities: is empty, for {self.shards}")


def refuse_url(path: str | Path) -> None:
    """Raise a ValueError for anything that some reader would take for a URL or a command; shards are local files."""
    text = str(path)
    if _SCHEME.match(text) or "://" in text or "\0" in text:
        raise ValueError(f"shards: {text!r} looks like a URL or a command; only local directories are read")


def indexed_splits(directory: str | Path) -> list[str]:
    """Names of the splits of a shard directory.

    Raises:
        FileNotFoundError: it does not exist, or it has no index.
    """
    refuse_url(directory)
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"the shard directory {directory} does not exist")
    found = sorted(path.stem for path in directory.glob("index/*.json") if path.with_suffix(".npy").exists())
    if not found:
        raise FileNotFoundError(f"{directory} has no index; make one with `mmalign data index {directory}`")
    return found


def suggestion(name: str, known: list[str]) -> str:
    """The end of an error message about an unknown name: "; did you mean …? There are …"."""
    close = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean {close[0]!r}?" if close else ";") + f" There are {json.dumps(known, ensure_ascii=False)}"


@dataclass(frozen=True)
class Reading:
    """How a run reads data: its stages and its evaluators alike, so that both share one feature cache.

    Attributes:
        limits: what counts as an unusable sample.
        workers: processes that read and decode, at most.
        cached: modalities whose towers never change in this run: evaluators may keep their outputs on disk.
    """

    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    workers: int = 0
    cached: frozenset[str] = frozenset()
