"""Walking over a similarity matrix tile by tile, so that it never exists as a whole.

Shared by the contrastive losses: the size of a tile, where the positives lie in it, and which rows take part.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmalign.batch import Embeddings

_TILE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""A tile should stay in a CPU's last-level cache, and fill a GPU; more would only cost memory."""

_STRIP_BYTES = {"cpu": 2 << 20, "cuda": 32 << 20}
"""What is done to a tile's entries, one operation after the other, is done to as much of it as a core's own cache
holds, or as much as fills a GPU."""

KEPT_TILES = {"cpu": 4, "cuda": 1}
"""So many tiles at most stay from a pass over all of them to the next, which then need not make them again."""


@dataclass(frozen=True)
class Tile:
    """Rows `top … bottom-1` against columns `left … right-1`, with memory for their similarities and to work in."""

    top: int
    bottom: int
    left: int
    right: int
    values: Float[Tensor, "tile_rows tile_columns"]
    scratch: Float[Tensor, "strip_rows tile_columns"]

    def strips(self) -> Iterator[tuple[slice, Float[Tensor, "part columns"], Float[Tensor, "part columns"]]]:
        """Rows, counted from `top`, with their values and memory to work in."""
        height = len(self.scratch)
        for first in range(0, len(self.values), height):
            values = self.values[first : first + height]
            yield slice(first, first + len(values)), values, self.scratch[: len(values)]


def tile_shape(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile: about square, because a matrix product then does most arithmetic per byte."""
    numbers = _TILE_BYTES.get(device.type, _TILE_BYTES["cuda"]) // dtype.itemsize
    side = 1 << ((numbers.bit_length() - 1) // 2)
    height = max(1, min(rows, side))
    return height, max(1, min(columns, numbers // height))


def tiles(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
    shape: tuple[int, int] | None = None,
    own: int = 1,
) -> list[Tile]:
    """Cover a rows × columns matrix, left to right within a band of rows.

    Args:
        own: so many tiles at the end have memory of their own each; those before them share that of the first of these.
    """
    height, width = shape or tile_shape(rows, columns, dtype, device)
    widest_tile = min(width, columns)
    strip = max(1, _STRIP_BYTES.get(device.type, _STRIP_BYTES["cuda"]) // (dtype.itemsize * max(1, widest_tile)))
    strip = min(strip, height, rows)
    corners = [(top, left) for top in range(0, rows, height) for left in range(0, columns, width)]
    own = min(own, len(corners))
    memory = [torch.empty(min(height, rows) * widest_tile, dtype=dtype, device=device) for _ in range(own)]
    scratch = torch.empty(strip * widest_tile, dtype=dtype, device=device)
    found = []
    for number, (top, left) in enumerate(corners, start=own - len(corners)):
        bottom, right = min(top + height, rows), min(left + width, columns)
        high, wide, low = bottom - top, right - left, min(strip, bottom - top)
        values, work = memory[max(0, number)][: high * wide].view(high, wide), scratch[: low * wide].view(low, wide)
        found.append(Tile(top, bottom, left, right, values, work))
    return found


def along(x: Float[Tensor, "rows dim"], grad_x: Float[Tensor, "rows dim"], tile: Tile) -> Float[Tensor, ""]:
    """A band's share of Σ_ij g_ij x_i·y_j, the gradient by the scale, out of Σ_j g_ij y_j and not of the tiles again.

    Band by band, because the product of all rows would be as large as a gradient.
    """
    band = slice(tile.top, tile.bottom)
    return torch.linalg.vecdot(x[band], grad_x[band]).sum(dtype=widest(x.device))


def widest(device: torch.device) -> torch.dtype:
    """The type for sums over all tiles: float64, or float32 on MPS, which has no wider one."""
    return torch.float32 if device.type == "mps" else torch.float64


def product(a: Float[Tensor, "m k"], b: Float[Tensor, "k n"], scale: float, tile: Tile) -> Float[Tensor, "m n"]:
    """scale · (a @ b), in the tile's memory."""
    return torch.addmm(tile.values, a, b, beta=0, alpha=scale, out=tile.values)


def add_product(total: Tensor, a: Float[Tensor, "m k"], b: Float[Tensor, "k n"], scale: float = 1.0) -> None:
    """total += scale · (a @ b), in place; `addmm_` does the same, but torch's counter of operations doesn't know it."""
    torch.addmm(total, a, b, alpha=scale, out=total)


@dataclass(frozen=True)
class Positives:
    """Which (row, column) pairs of a similarity matrix belong together: those with equal labels.

    Attributes:
        row_labels, column_labels: 0 … number of labels - 1.
        columns_per_label: how many columns carry a label.
        diagonal: when no label repeats, row i's one positive is column `diagonal + i`; else None.
    """

    row_labels: Int[Tensor, " rows"]
    column_labels: Int[Tensor, " columns"]
    columns_per_label: Int[Tensor, " labels"]
    diagonal: int | None

    @classmethod
    def of(cls, group: Int[Tensor, " columns"], start: int, stop: int) -> "Positives":
        """Rows are the samples start … stop-1 of the columns, and `group` says which samples belong together."""
        _, labels, counts = torch.unique(group, return_inverse=True, return_counts=True)
        return cls(labels[start:stop], labels, counts, start if len(counts) == len(group) else None)

    def within(self, tile: Tile) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Row and column numbers, counted from the tile's corner, of the positives in a tile; possibly none."""
        device = self.row_labels.device
        if self.diagonal is not None:
            first = max(tile.top, tile.left - self.diagonal)
            last = max(first, min(tile.bottom, tile.right - self.diagonal))
            along = torch.arange(first, last, device=device)
            return along - tile.top, along + (self.diagonal - tile.left)
        found = [torch.empty(0, 2, dtype=torch.long, device=device)]
        row_labels, column_labels = self.row_labels[tile.top : tile.bottom], self.column_labels[tile.left : tile.right]
        for strip, *_ in tile.strips():
            same = row_labels[strip, None] == column_labels
            if same.any():  # seldom away from the diagonal, and much cheaper than a search
                found.append(same.nonzero() + torch.tensor([strip.start, 0], device=device))
        rows, columns = torch.cat(found).unbind(1)
        return rows, columns

    def share(self, tile: Tile, rows: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """1 / number of positives of each of these rows of a tile, in the widest type."""
        return self.columns_per_label[self.row_labels[tile.top + rows]].to(widest(rows.device)).reciprocal()


@dataclass(frozen=True)
class AlignedRows:
    """The samples of a batch that have both modalities of a pair, in their order.

    Attributes:
        a, b: their vectors, in float32 or float64.
        group: as in Embeddings.
        start, stop: which of them are this process's anchors.
    """

    a: Float[Tensor, "aligned dim"]
    b: Float[Tensor, "aligned dim"]
    group: Int[Tensor, " aligned"]
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of anchors on all ranks together; at least 1, for dividing by it."""
        return max(1, len(self.group))


def both_present(embeddings: Embeddings, a: str, b: str) -> Bool[Tensor, " batch"]:
    """Where a sample has both modalities. A modality of which the batch holds nothing is absent everywhere."""
    nowhere = torch.zeros_like(embeddings.group, dtype=torch.bool)
    return embeddings.present.get(a, nowhere) & embeddings.present.get(b, nowhere)


def aligned_rows(embeddings: Embeddings, a: str, b: str) -> AlignedRows:
    """Drop the samples that lack a modality: they are neither anchors nor negatives.

    Raises:
        ValueError: the two modalities' vectors differ in size.
    """
    mask = both_present(embeddings, a, b)
    present = [embeddings.vectors[name] for name in (a, b) if name in embeddings.vectors]
    fallback = present[0] if present else torch.zeros(len(mask), 1, device=mask.device)
    first, second = (_at_least_float32(embeddings.vectors.get(name, fallback)) for name in (a, b))
    if first.shape != second.shape:
        raise ValueError(
            f"'{a}' has {first.shape[1]} channels and '{b}' has {second.shape[1]}; a pair needs equal ones"
        )
    start, stop = embeddings.rows or (0, len(mask))
    group = embeddings.group
    if not mask.all():  # a copy of everything, so only where needed
        start, stop = int(mask[:start].sum()), int(mask[:stop].sum())
        first, second, group = first[mask], second[mask], group[mask]
    return AlignedRows(first, second, group, start, stop)


def _at_least_float32(vectors: Tensor) -> Tensor:
    """Half-precision sums over thousands of negatives would lose the small ones."""
    return vectors if vectors.dtype in (torch.float32, torch.float64) else vectors.float()
