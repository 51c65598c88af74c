"""What `mmalign data` does: build, index, check, card."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.data.sources import source_class
from mmalign.data.sources.base import Source

if TYPE_CHECKING:
    from mmalign.data.faults import Fault
    from mmalign.data.index import SplitIndex


def make_source(name: str, settings: dict[str, Any] | None = None) -> Source:
    """A source from its short name or class path and its settings; texts are parsed by the constructor's types.

    Raises:
        ValueError: no such source, no such setting, or a value of another type.
    """
    from jsonargparse import ArgumentError as ParseError
    from jsonargparse import ArgumentParser

    found = source_class(name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, "source")
    try:
        parsed = parser.parse_object({"source": settings or {}})
    except ParseError as error:
        raise ValueError(f"data source {name}: {error}") from error
    return parser.instantiate(parsed).source


def build(source: str | Source, out: Path | str, samples_per_shard: int = 1000, **settings: Any) -> Path:
    """Write a data source as a shard directory: tars, index, data card.

    Args:
        source: short name ("scenes"), class path, or a source.
        settings: of the source's constructor, when it is given by name.

    Raises:
        ValueError: an unknown source or setting, or `out` holds other files.
    """
    from mmalign.data import shards

    if isinstance(source, str):
        source = make_source(source, settings)
    elif settings:
        raise ValueError("settings belong to a source that is given by name")
    return shards.build(source, out, samples_per_shard)


def index(directory: Path | str, tolerate: bool = False) -> "dict[str, SplitIndex]":
    """Index the tars of a directory, also such as others wrote, so that mmalign can read them.

    Args:
        tolerate: index the good samples of damaged tars, and record the others as faults.

    Returns:
        What was indexed, by split.
    """
    from mmalign.data.index import build_index

    return build_index(Path(directory), tolerate=tolerate)


def check(directory: Path | str) -> "list[Fault]":
    """Everything in a shard directory that a run would quarantine; empty when all is well."""
    from mmalign.data import check as checks

    return checks.check(Path(directory))


def card(directory: Path | str) -> str:
    """The data card in Markdown: the one that the build wrote, or, for indexed tars of others, one that is counted now.

    Raises:
        FileNotFoundError: no such directory, or neither a card nor an index in it.
    """
    from mmalign.data.card import foreign_card, read_card, to_markdown

    directory = Path(directory)
    built = (directory / "card.json").is_file()
    return to_markdown(read_card(directory) if built else foreign_card(directory))
