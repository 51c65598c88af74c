"""Remembered prefixes: the plain tower's results and gradients, the same bits whatever came before."""

import copy
import pickle

import pytest
import torch

from mmalign.encoders.frozen_prefix import FrozenPrefix, _groups
from mmalign.encoders.text_hf import TextCausalHF, TextHF

TEXTS = ["a", "the small red circle", "the big circle is left of the green square", "a", "the cat"]


@pytest.fixture(params=["bert", "llama", "gpt2"])
def tower(request, hf_folder):
    kind = TextHF if request.param == "bert" else TextCausalHF
    return kind(str(hf_folder(request.param)), max_length=32, prefix_cache_bytes=10**6)


def trained(tower, last):
    """As a stage leaves it: the last layers are trained, the others in evaluation mode."""
    tower.train().requires_grad_(False)
    layers = tower.layers()
    for layer in layers[: len(layers) - last]:
        layer.eval()
    for layer in layers[len(layers) - last :]:
        layer.requires_grad_(True)
    for part in tower.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return tower


def collated(tower, texts):
    return tower.preprocess.collate([tower.preprocess.prepare(text, None) for text in texts])


def result(tower, values, mask):
    tower.zero_grad()
    tokens = tower(values, mask)
    if any(p.requires_grad for p in tower.parameters()):
        (tokens.pooled * torch.linspace(-1, 1, tower.width)).sum().backward()
    gradients = {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    return tokens.pooled.detach(), tokens.sequence.detach()[mask], gradients


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("front", [False, True])
def test_equals_the_plain_tower(tower, last, front):
    trained(tower, last)
    values, mask = collated(tower, TEXTS)
    if front:
        if isinstance(tower, TextHF):
            pytest.skip("its positions count the padding")
        lengths = mask.sum(1).tolist()
        values, mask = (
            torch.stack([row.roll(len(row) - n) for row, n in zip(rows, lengths, strict=True)])
            for rows in (values, mask)
        )
    remembered = result(tower, values, mask)
    again = result(tower, values, mask)
    assert len(tower.prefix) == 4  # "a" stands twice
    tower.prefix = FrozenPrefix(0)
    plain = result(tower, values, mask)
    assert bool(plain[2]) == (last > 0)
    for a, b, c in zip(remembered[:2], again[:2], plain[:2], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-5)
    assert remembered[2].keys() == plain[2].keys()
    for name, gradient in plain[2].items():
        torch.testing.assert_close(remembered[2][name], gradient, atol=1e-5, rtol=1e-4)


def test_bits_do_not_depend_on_what_was_seen_before(tower):
    trained(tower, 1)
    fresh = copy.deepcopy(tower)
    assert len(fresh.prefix) == 0
    result(tower, *collated(tower, TEXTS[2:]))
    batch = collated(tower, TEXTS)
    first, second = result(tower, *batch), result(fresh, *batch)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])


def watched(tower, change=lambda hidden: hidden):
    """Shapes that the first block is given, call by call; `change` is done to what it gives."""
    block = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1)[0]
    shapes, own = [], block.forward

    def counted(hidden, *arguments, **keywords):
        shapes.append(hidden.shape[:2])
        found = own(hidden, *arguments, **keywords)
        return (change(found[0]),) if isinstance(found, tuple) else change(found)

    block.forward = counted
    return shapes, block, counted


def test_leading_blocks_run_once_per_text(tower):
    trained(tower, 1)
    shapes, block, counted = watched(tower)
    batch = collated(tower, TEXTS)
    result(tower, *batch)
    tried = len(shapes)
    for _ in range(2):
        result(tower, *batch)
    assert len(shapes) == tried > 0
    assert block.forward is counted
    result(tower, *collated(tower, [*TEXTS, "the dog"]))
    assert len(shapes) == tried + 1
    assert all(texts * length <= 128 for texts, length in shapes)


@pytest.mark.parametrize("alike", [True, False])
def test_texts_go_together_where_that_gives_the_same_bits(tower, alike):
    """In another place of a product sums may be rounded otherwise; here it is made so, or made not to be."""
    trained(tower, 1)
    alone = copy.deepcopy(tower)

    def change(hidden):
        places = 1e-3 * torch.arange(len(hidden))[:, None, None]
        return hidden.mul(0.0).add(1.0) if alike else hidden.add(places)

    shapes, *_ = watched(tower, change)
    watched(alone, change)
    texts, mask = torch.cartesian_prod(torch.arange(5, 9), torch.arange(5, 8)), torch.ones(12, 2, dtype=torch.bool)
    for batch in (slice(6), slice(6, 12)):
        result(tower, texts[batch], mask[batch])
    for i in range(12):
        result(alone, texts[i : i + 1], mask[:1])
    assert shapes == [(16, 8)] * (1 + 6) + ([(16, 8)] if alike else [(1, 8)] * 12)
    ours, theirs = tower.prefix._remembered.rows, alone.prefix._remembered.rows
    assert ours.keys() == theirs.keys()
    assert len(ours) == 12
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("length", [7, 8, 9, 31, 32])
def test_a_text_has_the_same_bits_beside_any_other(tower, length):
    """Up to the longest that the tower takes, with padding and without."""
    trained(tower, 1)
    alone = copy.deepcopy(tower)
    values = torch.randint(5, 25, (40, 32), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([length, *range(1, 33), *[length] * 7])
    mask = torch.arange(32) < lengths[:, None]
    result(alone, values[:1, :length], mask[:1, :length])
    ((key, expected),) = alone.prefix._remembered.rows.items()
    for order in (torch.arange(40), torch.arange(39, -1, -1)):
        tower.prefix.forget()
        result(tower, values[order], mask[order])
        assert torch.equal(tower.prefix._remembered.rows[key], expected)


def test_a_shape_depends_on_the_length_of_a_text_alone():
    texts = {bytes([length]): torch.zeros(length, dtype=torch.long) for length in (1, 8, 9, 15, 29, 30, 200)}
    found = [(shape[:2], shape.padded, [len(text) for text in group.values()])
             for shape, group in _groups(texts, 30, 64)]  # fmt: skip
    assert found == [
        ((8, 8), True, [1]),
        ((8, 8), False, [8]),
        ((4, 16), True, [9, 15]),
        ((2, 30), True, [29]),
        ((2, 30), False, [30]),
        ((1, 200), False, [200]),
    ]
    assert [
        len(group) for _, group in _groups({bytes([i]): torch.zeros(4, dtype=torch.long) for i in range(10)}, None, 32)
    ] == [4, 4, 2]


def test_an_evaluation_has_the_same_bits_whatever_is_trained(tower):
    values, mask = collated(tower, TEXTS)
    found = []
    for last in (len(tower.layers()), 1, 0):
        trained(tower, last).eval()
        with torch.no_grad():
            found.append(tower(values, mask).sequence)
    assert len(tower.prefix) == 0
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_another_weight_forgets_everything(tower):
    trained(tower, 1)
    batch = collated(tower, TEXTS)
    before = result(tower, *batch)[0]
    with torch.no_grad():
        next(tower.layers()[0].parameters()).mul_(1.5)
    after = result(tower, *batch)[0]
    assert not torch.allclose(before, after)
    tower.prefix = FrozenPrefix(0)
    torch.testing.assert_close(result(tower, *batch)[0], after, atol=1e-5, rtol=1e-5)


def test_nothing_is_remembered_of_layers_that_are_trained_or_drop_out(tower):
    batch = collated(tower, TEXTS)
    tower.train()
    tower(*batch)
    tower.requires_grad_(False)  # but still in training mode
    tower(*batch)
    assert len(tower.prefix) == 0
    tower.eval()
    tower(*batch)
    assert len(tower.prefix) == 4


def test_capacity_is_kept(tower):
    trained(tower, 1)
    batch = collated(tower, TEXTS)
    expected = result(tower, *batch)[0]
    room = max(len(row) for row in tower.prefix._remembered.rows.values()) * tower.width * 4
    tower.prefix = FrozenPrefix(room)
    assert torch.equal(result(tower, *batch)[0], expected)
    assert 0 < tower.prefix.bytes_used <= room
    assert len(pickle.loads(pickle.dumps(tower.prefix))) == 0
    assert tower.prefix.capacity_bytes == room


def test_compiled_code_is_only_what_does_not_depend_on_what_is_remembered(tower):
    trained(tower, 1)
    batches = [collated(tower, TEXTS[i : i + 3]) for i in range(3)]
    expected = [result(tower, *batch)[0] for batch in batches]
    tower.prefix = FrozenPrefix(10**6)
    torch.compiler.reset()
    attends = []

    def backend(graph, _):
        attends.append("scaled_dot_product_attention" in graph.code)
        return graph

    tower.compile(backend=backend)
    for batch, plain in zip(batches, expected, strict=True):
        torch.testing.assert_close(result(tower, *batch)[0], plain)
    assert not any(attends)
    with torch.no_grad():
        tower(*batches[0])
    assert any(attends)
