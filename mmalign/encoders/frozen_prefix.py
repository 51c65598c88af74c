"""What comes out of a text tower's leading layers while they are not trained: computed once per text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmalign.encoders.base import Encoder

Forward = Callable[[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]], Any]
"""Token ids and which of them count -> whatever the tower's own model returns."""


@dataclass
class _Remembered:
    """What one stage's frozen weights give for each text.

    Attributes:
        weights: which they are.
        tuples: whether this model's blocks return theirs in a tuple.
    """

    weights: tuple[Any, ...] = ()
    rows: dict[bytes, Tensor] = field(default_factory=dict)
    bytes_used: int = 0
    tuples: bool = False


class FrozenPrefix:
    """Remembers the vectors behind the leading frozen blocks of a tower, by text.

    Of a tower whose last layers alone are trained, the layers before give the same for the same text at every epoch,
    replay and evaluation. With this they run once per text, and a step costs what the last layers cost.

    Each text goes through the prefix alone and without autocast. What is remembered therefore doesn't depend on the
    texts around it, nor on what was remembered before: a resumed run goes on bit by bit. It differs from the plain
    tower by rounding.

    It is used in training steps, for as many leading layers as are frozen *and* in evaluation mode (dropout would make
    them random). Where no gradients are wanted the plain tower is computed, so that what an evaluation finds does not
    depend on what a stage trains; the first pass of gradient caching does so, too. A teacher uses it nevertheless
    (`of_teacher`). It forgets everything as soon as one of the frozen weights is another, and is no part of
    checkpoints, copies or exports.

    Where it is used, a compiled tower's layers run uncompiled.

    Cost: a text by itself makes slow matrix products. Of SmolLM2-135M with four layers trained, a step of 64 texts of
    ten tokens takes, on one core with AMX, .38 times as long as without when all are remembered, and 10 times as long
    when none is (in float32 .33 and 4.3 times): it pays for texts that are met more than about 15 times (6 times).

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
            self._remembered.weights, self._remembered.bytes_used = found, 0
            self._remembered.rows.clear()
        # one transfer for all rows: on a GPU each waits for all that was asked of it before
        ids, real = values.cpu(), attended.cpu()
        rows = [self._row(forward, blocks, depth, ids[i][real[i]], values.device) for i in range(len(ids))]
        places = real.flatten().nonzero().squeeze(1).to(values.device)
        given = rows[0].new_zeros(values.numel(), rows[0].shape[-1]).index_copy(0, places, torch.cat(rows))
        given = given.unflatten(0, values.shape)
        with _forwards(blocks[:depth], [lambda *_, **__: self._like_blocks(given)] + [self._passed_on] * (depth - 1)):
            return forward(values, attended)

    @torch.no_grad()
    def _row(
        self, forward: Forward, blocks: nn.ModuleList, depth: int, ids: Int[Tensor, " length"], device: torch.device
    ) -> Float[Tensor, "length width"]:
        """`ids` are on the CPU, what is found is on `device`."""
        key = ids.numpy().tobytes()
        if key in self._remembered.rows:
            return self._remembered.rows[key]
        ids = ids.to(device)
        found: list[Tensor] = []

        def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._remembered.tuples = isinstance(output, tuple)
            if self._remembered.tuples and len(output) > 1:
                raise ValueError("prefix_cache_bytes: the blocks of this model give each other more than vectors")
            found.append((output[0] if self._remembered.tuples else output)[0])

        hook = blocks[depth - 1].register_forward_hook(take)
        rest = blocks[depth:]
        try:
            with torch.autocast(ids.device.type, enabled=False), _forwards(rest, [self._passed_on] * len(rest)):
                forward(ids[None], torch.ones_like(ids[None], dtype=torch.bool))
        finally:
            hook.remove()
        size = found[0].numel() * found[0].element_size()
        if self.bytes_used + size <= self.capacity_bytes:
            self._remembered.rows[key] = found[0]
            self._remembered.bytes_used += size
        return found[0]

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
