"""Data sources, one file each; found by short name so that none is imported before it is asked for."""

from importlib import import_module

from mmalign.data.sources.base import Source

SOURCES = {
    "scenes": "mmalign.data.sources.scenes.Scenes",
    "tuxpaint": "mmalign.data.sources.tuxpaint.TuxPaint",
    "openclipart": "mmalign.data.sources.openclipart.OpenClipart",
    "docstrings": "mmalign.data.sources.text.Docstrings",
    "wordnet": "mmalign.data.sources.wordnet.WordNet",
    "folder": "mmalign.data.sources.captions.Folder",
    "table": "mmalign.data.sources.captions.Table",
    "hub": "mmalign.data.sources.captions.HubDataset",
    "audiocaps": "mmalign.data.sources.sounds.AudioCaps",
    "clotho": "mmalign.data.sources.sounds.Clotho",
    "wavcaps": "mmalign.data.sources.sounds.WavCaps",
    "esc50": "mmalign.data.sources.sounds.ESC50",
    "shuffled": "mmalign.data.sources.shuffled.Shuffled",
}


def source_class(name: str) -> type[Source]:
    """The class of a source by its short name or its class path ("package.module.Class").

    Raises:
        ValueError: neither is known, or it is no `Source`.
    """
    path = SOURCES.get(name, name)
    module, _, attribute = path.rpartition(".")
    if not module:
        raise ValueError(f"no data source {name!r}; known are {', '.join(SOURCES)}, or give a class path")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"data source {path!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Source)):
        raise ValueError(f"{path} is no mmalign.data.sources.base.Source")
    return found
