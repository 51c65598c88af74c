"""Search of a gallery: exact in tiles, or through an approximate index of faiss, whose recall can be measured.

Scores are inner products of float32 unit vectors: cosines. Items with equal scores come in the order of the gallery,
also where there is room for only some. (Float32 may order either way what differs by less than `TIE_TOLERANCE`.)
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.evaluation.retrieval_metrics import TIE_TOLERANCE

AUTO = "auto"
_SMALL = 20_000
"""Items up to which a graph is built in seconds."""

_STRIP = 256
"""Queries at a time whose found vectors are gathered."""


class Found(NamedTuple):
    """The best of each query, falling.

    Attributes:
        scores: cosines; -inf where an index returned less than was asked for.
        items: numbers of the gallery's items; -1 there.
    """

    scores: Float[Tensor, "queries top"]
    items: Int[Tensor, "queries top"]


class Recall(NamedTuple):
    """Mean share of the exact best that an index returns, and over how many queries."""

    share: float
    queries: int


class Gallery:
    """Items that can be searched, exactly and, where an index is named, approximately.

    Args:
        vectors: unit vectors.
        keys: names of the items.
        index: a factory string of faiss, and after a colon its parameters: "IVF256,Flat:nprobe=8". Without parameters
            those of faiss hold. "auto" takes `default_index`. None: only exact search.

    Raises:
        ValueError: a vector is not finite, there is not one key for each, or faiss refuses the index.
        ImportError: an index is asked for, and faiss is not installed.
    """

    def __init__(self, vectors: Float[Tensor, "items dim"], keys: list[str], index: str | None = None) -> None:
        if len(vectors) != len(keys):
            raise ValueError(f"gallery: {len(vectors)} vectors, but {len(keys)} keys")
        self.vectors, self.keys = _checked(vectors, "gallery"), keys
        self.index_name = default_index(len(keys)) if index == AUTO else index
        self._index = None if self.index_name is None else _build(self.index_name, self.vectors)

    def __len__(self) -> int:
        return len(self.keys)

    def exact(self, queries: Float[Tensor, "queries dim"], top: int = 10) -> Found:
        """The `top` best items of each query (all, where there are fewer)."""
        return exact_search(queries, self.vectors, top)

    def search(self, queries: Float[Tensor, "queries dim"], top: int = 10) -> Found:
        """The same through the index, if there is one, with exact scores of what it returns."""
        if self._index is None or not len(self) or top < 1:
            return self.exact(queries, top)
        top = min(top, len(self))
        queries = _checked(queries, "queries")
        items = torch.from_numpy(self._index.search(queries.cpu().numpy(), top)[1]).to(queries.device)
        scores = torch.empty(items.shape, device=queries.device)
        for rows, wanted, out in zip(queries.split(_STRIP), items.split(_STRIP), scores.split(_STRIP), strict=True):
            out.copy_((self.vectors[wanted.clamp(min=0)] @ rows.unsqueeze(2)).squeeze(2))
        return Found(*_sorted(scores.masked_fill_(items < 0, -torch.inf), items))

    def recall(self, top: int = 10, queries: Float[Tensor, "queries dim"] | None = None, sample: int = 256) -> Recall:
        """Share of the exact `top` best that `search` returns; what ties with the last of them counts as one of them.

        Args:
            queries: such as will be asked. An index built on pictures finds less for texts, which lie elsewhere, than
                for pictures.
            sample: without queries, so many of the gallery's own items ask, evenly spread; each finds itself.
        """
        if queries is None:
            queries = self.vectors[torch.linspace(0, len(self) - 1, min(sample, len(self))).round().long()]
        bar = self.exact(queries, top).scores[:, -1:] - TIE_TOLERANCE
        return Recall(float((self.search(queries, top).scores >= bar).double().mean()), len(queries))


def exact_search(
    queries: Float[Tensor, "queries dim"], gallery: Float[Tensor, "gallery dim"], top: int, tile: int = 2048
) -> Found:
    """Exact search; at most tile × tile scores exist at a time, so that memory is linear in queries and gallery.

    Raises:
        ValueError: a vector is not finite, or `top` is below 1.
    """
    queries, gallery = _checked(queries, "queries"), _checked(gallery, "gallery")
    if top < 1:
        raise ValueError(f"top is {top}, must be at least 1")
    top = min(top, len(gallery))
    scores = queries.new_full((len(queries), top), -torch.inf)
    items = torch.full((len(queries), top), -1, device=queries.device)
    for start in range(0, len(queries), tile):
        block = slice(start, start + tile)
        for left in range(0, len(gallery), tile):
            _merge(scores[block], items[block], queries[block] @ gallery[left : left + tile].T, left)
    return Found(scores, items)


def _merge(best: Tensor, items: Tensor, scores: Tensor, left: int) -> None:
    """Take the tile of scores that starts at item `left` into the best so far, in place."""
    open_rows = (scores.amax(1) > best[:, -1]).nonzero().squeeze(1)  # an equal score further down loses the tie
    if not len(open_rows):
        return
    some = scores if len(open_rows) == len(scores) else scores[open_rows]
    columns = _first_largest(some, min(best.shape[1], some.shape[1]))
    merged = _sorted(
        torch.cat([best[open_rows], some.gather(1, columns)], 1), torch.cat([items[open_rows], columns + left], 1)
    )
    best[open_rows], items[open_rows] = (part[:, : best.shape[1]] for part in merged)


def _first_largest(scores: Tensor, count: int) -> Tensor:
    """Columns of the `count` largest of each row, of equal ones the first; topk alone takes any of them."""
    largest, columns = scores.topk(count, dim=1)
    tied = (scores >= largest[:, -1:]).sum(1) > count
    if tied.any():
        columns[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :count]
    return columns


def _sorted(scores: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """By falling score, then by item."""
    items, order = items.sort(dim=1)
    scores, falling = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores, items.gather(1, falling)


def _checked(vectors: Tensor, name: str) -> Tensor:
    vectors = vectors.detach().float()
    if bad := int((~vectors.norm(dim=1).isfinite()).sum()):
        raise ValueError(f"{name}: {bad} of {len(vectors)} embeddings are not finite")
    return vectors


def default_index(items: int) -> str:
    """The index for a gallery of this size: a graph up to 20,000 items, above that inverted lists.

    HNSW: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
    Small World graphs", 2018. The lists are about 1.6 times the root of the items; one in 100 is looked at, at least 4.
    They hold vectors in half precision, which are only to be found: `Gallery.search` computes the scores from its own.
    """
    if items <= _SMALL:
        return "HNSW32,Flat:efSearch=128"
    lists = 2 ** round(math.log2(1.6 * items**0.5))
    return f"IVF{lists},SQfp16:nprobe={max(4, lists // 100)}"


def import_faiss() -> Any:
    """The module, set to as many threads as torch has.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("an approximate index needs the package faiss: pip install 'mmalign[search]'") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def empty_index(name: str, dim: int) -> Any:
    """A faiss index without items, for inner products; cheap, so that a name can be checked before long work.

    Raises:
        ValueError: faiss does not know it.
        ImportError: faiss is not installed.
    """
    faiss = import_faiss()
    factory, _, parameters = name.partition(":")
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        faiss.ParameterSpace().set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise _refused(name, error) from None
    return index


def _build(name: str, vectors: Float[Tensor, "items dim"]) -> Any:
    index = empty_index(name, vectors.shape[1])
    rows = vectors.cpu().contiguous().numpy()
    try:
        index.train(rows)
        index.add(rows)
    except RuntimeError as error:
        raise _refused(name, error) from None
    return index


def _refused(name: str, error: RuntimeError) -> ValueError:
    return ValueError(f"index {name!r}: {str(error).rpartition(': ')[2]}")  # before that stands faiss's own source
