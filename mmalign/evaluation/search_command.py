"""What `mmalign search` does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.bound import check_members
from mmalign.data.collate import collate, prepare
from mmalign.data.config import ShardData, suggestion
from mmalign.data.decode import EXTENSIONS, decode
from mmalign.data.faults import Limits, SampleError
from mmalign.data.sample import DEFAULT_MEMBERS, RawSample, Variant
from mmalign.data.select import variants_in
from mmalign.data.shardset import ShardSet
from mmalign.data.variants import VariantInfo
from mmalign.evaluation.embed import bound_modalities, device_of, embed_modality
from mmalign.evaluation.search import AUTO, Gallery, default_index, empty_index, import_faiss

if TYPE_CHECKING:
    from mmalign.model import Aligner

_RECALL_SAMPLES = 256
_CAPTION_CHARACTERS = 100
_CAPTION_MEMBERS = (DEFAULT_MEMBERS["text"], "captions[en]", "captions[*]")


def search(
    checkpoint: Path,
    shards: Path,
    split: str,
    text: str | None,
    file: Path | None,
    modality: str,
    query_modality: str | None,
    patterns: dict[str, str],
    top: int,
    index: str | None,
    device: str = "auto",
) -> int:
    """Ask the items of a split with a text or a file; prints score, key and caption of the best.

    Args:
        checkpoint: a run, a checkpoint file or an export.
        text, file: the query: exactly one of them is given.
        modality: of the items that are searched.
        query_modality: whose encoder reads the query; needed only where several read its kind.
        patterns: modality name -> members that stand for it, where they are not the default of its kind.
        index: a factory string of faiss, see `Gallery`; its recall over the queries of the split is printed as well.
        device: as `named_device` takes it; search itself is done on the CPU.

    Raises:
        FileNotFoundError, ValueError: file, data, model or device are not there or not usable, or the model lacks a
            modality; said before long work.
        ImportError: an index is asked for, and faiss is not installed.
    """
    if top < 1:
        raise ValueError(f"--top is {top}, must be at least 1")
    data = ShardData(str(shards), split)
    check_members(data)
    kind, variant = _query(text, file)
    if index is not None:
        import_faiss()  # where it is missing, this is said before the model is loaded
    from mmalign.training.device import named_device
    from mmalign.training.load import load_model

    place = named_device(device)
    model, _ = load_model(checkpoint)
    model.to(place)
    for name in (modality, *patterns):
        if name not in model.encoders:
            raise ValueError(f"the model has no encoder {name!r}{suggestion(name, model.modalities)}")
    asking = _reader(model, kind, query_modality)
    patterns = bound_modalities(model, data) | patterns
    data = replace(data, modalities=patterns)
    try:
        vector = _embed(model, asking, variant)
    except SampleError as error:
        raise ValueError(f"--text: {error}" if file is None else f"{file}: {error}") from None
    if index is not None:
        empty_index(default_index(0) if index == AUTO else index, model.dim)

    items = embed_modality(model, data, modality, dataset=shards.name)
    if not items.infos:
        raise ValueError(f"{shards}: no sample of the split {split!r} has a member {patterns[modality]!r}")
    gallery = Gallery(items.vectors, [info.key for info in items.infos], index)
    found = gallery.search(vector, top)
    samples = ShardSet.open(shards, split)
    for score, item in zip(found.scores[0].tolist(), found.items[0].tolist(), strict=True):
        if item >= 0:
            caption = _caption(samples, items.infos[item], patterns[modality])
            print(_plain(f"{score:6.3f}  {gallery.keys[item]}  {caption}").rstrip())
    if gallery.index_name is not None:
        print(_recall(model, data, gallery, asking, top))
    return 0


def _query(text: str | None, file: Path | None) -> tuple[str, Variant]:
    """The query's kind (see Preprocess) by its extension, and its bytes, not yet decoded."""
    if file is None:
        return "text", Variant("txt", "", (text or "").encode("utf-8", "surrogateescape"))
    extension = file.suffix.lower().removeprefix(".")
    for kind, known in EXTENSIONS.items():
        if extension in known:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file")
            return kind, Variant(extension, "", file.read_bytes())
    everything = ", ".join(name for known in EXTENSIONS.values() for name in known)
    raise ValueError(f"{file}: {extension!r} is not read; only {everything} are")


def _reader(model: "Aligner", kind: str, wanted: str | None) -> str:
    """The modality whose encoder reads this kind."""
    names = [name for name in model.modalities if model.tower(name).preprocess.kind == kind]
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"--as: no encoder {wanted!r} of the model reads {kind}{suggestion(wanted, names)}")
        return wanted
    if len(names) != 1:
        several = f"several encoders of the model read {kind}, say which with --as: {', '.join(names)}"
        none = f"no encoder of the model reads {kind}; it has {', '.join(model.modalities)}"
        raise ValueError(several if names else none)
    return names[0]


@torch.no_grad()
def _embed(model: "Aligner", modality: str, variant: Variant) -> Float[Tensor, "1 dim"]:
    preprocess = model.tower(modality).preprocess
    values = collate(preprocess, [prepare(preprocess, variant, Limits(), None)])
    return model.embed(modality, values.to(device_of(model))).float().cpu()


def _caption(samples: ShardSet, info: VariantInfo, pattern: str) -> str:
    """The found item itself where it is a text, else the first caption of its sample; on one line."""
    try:
        found = next(_texts(samples.read(info.sample), info, pattern), None)
        line = "" if found is None else " ".join(decode("text", found.name, found.data, Limits()).split())
    except SampleError:  # a sample without a usable caption was found all the same
        return ""
    return line if len(line) <= _CAPTION_CHARACTERS else line[: _CAPTION_CHARACTERS - 1] + "…"


def _plain(line: str) -> str:
    """Without what a terminal would take for a command: keys and captions come from others."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)


def _texts(sample: RawSample, info: VariantInfo, pattern: str) -> Iterator[Variant]:
    for variant in variants_in(sample, pattern, Limits()):
        if variant.name == info.name and (variant.name.startswith("captions[") or variant.name.endswith("txt")):
            yield variant
    for members in _CAPTION_MEMBERS:
        yield from variants_in(sample, members, Limits())


def _recall(model: "Aligner", data: ShardData, gallery: Gallery, asking: str, top: int) -> str:
    """One line about what the index finds for the split's own queries, or, where it has none, for its items."""
    queries = embed_modality(model, replace(data, limit=_RECALL_SAMPLES), asking)
    if queries.infos:
        recall, who = gallery.recall(top, queries.vectors), f"{asking} queries of the split"
    else:
        recall, who = gallery.recall(top, sample=_RECALL_SAMPLES), "of the items themselves as queries"
    return f"recall@{top} of {gallery.index_name} against exact search: {recall.share:.3f}, over {recall.queries} {who}"
