"""What comes out of a text tower's leading layers while they are not trained: computed once per text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmalign.encoders.base import Encoder

_Compute = Callable[[list[Int[Tensor, " _"]], "_Shape"], list[Float[Tensor, "_ width"]]]

Forward = Callable[[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]], Any]
"""Token ids and which of them count -> whatever the tower's own model returns."""

_GROUP_TOKENS = {"cpu": 128, "cuda": 2048}
"""Texts that go through the prefix together have at most so many, padding included."""

_LENGTH_MULTIPLE = 8
"""Texts are padded to a multiple of this."""


class _Shape(NamedTuple):
    """Of what goes through the prefix at a time: so many texts, padded to so many tokens. A padding mask is another
    way through a model than none, so that none of them is padded, or every one."""

    texts: int
    length: int
    padded: bool


@dataclass
class _Remembered:
    """What one stage's frozen weights give for each text.

    Attributes:
        weights: which they are.
        tuples: whether this model's blocks return theirs in a tuple.
        alike: whether texts of this shape give the same bits beside each other as among copies of themselves.
    """

    weights: tuple[Any, ...] = ()
    rows: dict[bytes, Tensor] = field(default_factory=dict)
    bytes_used: int = 0
    tuples: bool = False
    alike: dict[_Shape, bool] = field(default_factory=dict)


class FrozenPrefix:
    """Remembers the vectors behind the leading frozen blocks of a tower, by text.

    Of a tower whose last layers alone are trained, the layers before give the same for the same text at every epoch,
    replay and evaluation. With this they run once per text, and a step costs what the last layers cost.

    What is remembered of a text doesn't depend on the texts around it, nor on what was remembered before: a resumed run
    goes on bit by bit. To this end texts of about one length go through the prefix in groups of a fixed shape. Whether
    a text gives the same bits there beside others as among copies of itself is tried once for each shape; where it does
    not, each text goes alone. What is remembered differs from the plain tower by rounding, and is computed without
    autocast.

    It is used in training steps, for as many leading layers as are frozen *and* in evaluation mode (dropout would make
    them random). Where no gradients are wanted the plain tower is computed, so that what an evaluation finds does not
    depend on what a stage trains; the first pass of gradient caching does so, too. A teacher uses it nevertheless
    (`of_teacher`). It forgets everything as soon as one of the frozen weights is another, and is no part of
    checkpoints, copies or exports.

    Where it is used, a compiled tower's layers run uncompiled.

    Cost: small groups make slow matrix products, so that a text met first costs more than without; `mmalign bench
    frozen-prefix` measures both.

    Args:
        capacity_bytes: texts that would need more are computed again each time.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._remembered = _Remembered()
        self._without_gradients = False

    @property
    def bytes_used(self) -> int:
        return self._remembered.bytes_used

    def __len__(self) -> int:
        """Texts that are remembered."""
        return len(self._remembered.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenPrefix, (self.capacity_bytes,)

    def forget(self) -> None:
        """What was remembered of texts, here and in the teacher's."""
        self._remembered.rows.clear()
        self._remembered.bytes_used = 0

    def of_teacher(self) -> "FrozenPrefix":
        """One that remembers the same texts as this, in the same place, and is used without gradients, too."""
        other = FrozenPrefix(self.capacity_bytes)
        other._remembered, other._without_gradients = self._remembered, True
        return other

    def run(
        self,
        forward: Forward,
        tower: Encoder,
        base: nn.Module,
        values: Int[Tensor, "batch length"],
        attended: Bool[Tensor, "batch length"],
    ) -> Any:
        """`forward(values, attended)`, with what is known of the leading blocks in their place.

        Args:
            tower: its `layers` are the embeddings and then block after block.
            base: the model that has these blocks in a list.

        Raises:
            ValueError: blocks return more than one tensor, as T5's do.
        """
        if self.capacity_bytes == 0 or not (self._without_gradients or torch.is_grad_enabled()):
            return forward(values, attended)
        layers = tower.layers()
        frozen = _leading_frozen(layers)
        if frozen < 2:  # no block
            return forward(values, attended)
        return self._run(forward, layers, base, frozen, values, attended)

    @torch.compiler.disable(reason="what is remembered differs from call to call: each would be compiled anew")
    def _run(
        self,
        forward: Forward,
        layers: list[nn.Module],
        base: nn.Module,
        frozen: int,
        values: Int[Tensor, "batch length"],
        attended: Bool[Tensor, "batch length"],
    ) -> Any:
        blocks = next(m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == len(layers) - 1)
        depth = frozen - 1
        weights = [parameter for layer in layers[:frozen] for parameter in layer.parameters()]
        found = (depth, *((id(weight), weight._version, weight.data_ptr()) for weight in weights))
        if found != self._remembered.weights:
            self.forget()
            self._remembered.alike.clear()
            self._remembered.weights = found
        # one transfer for all rows: on a GPU each waits for all that was asked of it before
        ids, real = values.cpu(), attended.cpu()
        texts = [row[mask] for row, mask in zip(ids, real, strict=True)]
        keys = [text.numpy().tobytes() for text in texts]
        rows = {key: self._remembered.rows[key] for key in keys if key in self._remembered.rows}
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}
        longest = getattr(base.config, "max_position_embeddings", None)
        compute = partial(self._prefix, forward, blocks, depth, values.device)
        for shape, group in _groups(fresh, longest, _GROUP_TOKENS.get(values.device.type, _GROUP_TOKENS["cuda"])):
            for key, row in zip(group, self._rows(compute, list(group.values()), shape), strict=True):
                rows[key] = row.clone()  # not the whole group's memory
                self._remember(key, rows[key])
        places = real.flatten().nonzero().squeeze(1).to(values.device)
        hidden = torch.cat([rows[key] for key in keys])
        given = hidden.new_zeros(values.numel(), hidden.shape[-1]).index_copy(0, places, hidden)
        given = given.unflatten(0, values.shape)
        with _forwards(blocks[:depth], [lambda *_, **__: self._like_blocks(given)] + [self._passed_on] * (depth - 1)):
            return forward(values, attended)

    def _remember(self, key: bytes, row: Float[Tensor, "length width"]) -> None:
        size = row.numel() * row.element_size()
        if self.bytes_used + size <= self.capacity_bytes:
            self._remembered.rows[key] = row
            self._remembered.bytes_used += size

    def _rows(self, compute: _Compute, texts: list[Int[Tensor, " _"]], shape: _Shape) -> list[Tensor]:
        """What each of at most `shape.texts` texts gives, whatever the others are."""
        alike = self._remembered.alike
        if alike.get(shape, True):
            together = compute(texts, shape)
            if shape not in alike:
                copies = [compute([text], shape)[0] for text in texts]
                alike[shape] = all(torch.equal(row, copies[place % len(texts)]) for place, row in enumerate(together))
            if alike[shape]:
                return together[: len(texts)]
        return [compute([text], shape._replace(texts=1))[0] for text in texts]

    @torch.no_grad()
    def _prefix(
        self,
        forward: Forward,
        blocks: nn.ModuleList,
        depth: int,
        device: torch.device,
        texts: list[Int[Tensor, " _"]],
        shape: _Shape,
    ) -> list[Float[Tensor, "_ width"]]:
        """What the texts give, repeated until the shape is full."""
        found: list[Tensor] = []

        def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._remembered.tuples = isinstance(output, tuple)
            if self._remembered.tuples and len(output) > 1:
                raise ValueError("prefix_cache_bytes: the blocks of this model give each other more than vectors")
            found.append(output[0] if self._remembered.tuples else output)

        ids = torch.zeros(shape.texts, shape.length, dtype=torch.long)
        lengths = [len(text) for text in islice(cycle(texts), shape.texts)]
        for row, text in zip(ids, cycle(texts)):
            row[: len(text)] = text
        real = torch.arange(shape.length) < torch.tensor(lengths)[:, None]
        hook = blocks[depth - 1].register_forward_hook(take)
        rest = blocks[depth:]
        try:
            with torch.autocast(device.type, enabled=False), _forwards(rest, [self._passed_on] * len(rest)):
                forward(ids.to(device), real.to(device))
        finally:
            hook.remove()
        return [row[:length] for row, length in zip(found[0], lengths, strict=True)]

    def _like_blocks(self, hidden: Tensor) -> Any:
        """As the blocks of this model return it: some return a tuple."""
        return (hidden,) if self._remembered.tuples else hidden

    def _passed_on(self, hidden: Tensor, *_: Any, **__: Any) -> Any:
        return self._like_blocks(hidden)


def _leading_frozen(layers: list[nn.Module]) -> int:
    for count, layer in enumerate(layers):
        trained = any(parameter.requires_grad for parameter in layer.parameters())
        if trained or any(part.training for part in layer.modules() if not isinstance(part, nn.ModuleList)):
            return count
    return len(layers)


def _groups(
    texts: dict[bytes, Int[Tensor, " _"]], longest: int | None, tokens: int
) -> Iterator[tuple[_Shape, dict[bytes, Int[Tensor, " _"]]]]:
    """Shapes, which depend on a text's length alone, with texts for them.

    Args:
        longest: no text is padded to more than this.
        tokens: at most so many in a shape of several texts.
    """
    by_shape: dict[_Shape, list[bytes]] = {}
    for key, text in texts.items():
        rounded = -(-len(text) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        length = max(len(text), min(rounded, longest or rounded))
        by_shape.setdefault(_Shape(max(1, tokens // length), length, length > len(text)), []).append(key)
    for shape, keys in by_shape.items():
        for start in range(0, len(keys), shape.texts):
            yield shape, {key: texts[key] for key in keys[start : start + shape.texts]}


@contextmanager
def _forwards(blocks: nn.ModuleList, forwards: list[Callable[..., Any]]) -> Iterator[None]:
    """Other `forward` methods for a while; what models ask of their blocks besides is still there."""
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own
