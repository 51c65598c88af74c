"""The model: what it promises for absent modalities, frozen towers and cached features."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmalign.batch import Batch, Tokens, Values
from mmalign.encoders.base import Axis, Encoder, SeriesPreprocess
from mmalign.fusion import ConcatMLP
from mmalign.losses import InfoNCE
from mmalign.model import Aligner, bucketed

WIDTH = 8


class Series(Encoder):
    def __init__(self, channels: int = 3, width: int = WIDTH) -> None:
        super().__init__(SeriesPreprocess(channels, hertz=10.0), width, Axis("frames", hertz=10.0))
        self.net = nn.Sequential(nn.Linear(channels, width), nn.Dropout(0.5))

    def forward(self, values, mask=None):
        return Tokens.mean_pooled(self.net(values), mask)


def batch(present_b: list[bool]) -> Batch:
    n = len(present_b)
    values = {
        name: Values(present, torch.randn(n, 5, 3), torch.ones(n, 5, dtype=torch.bool))
        for name, present in {"a": torch.ones(n, dtype=torch.bool), "b": torch.tensor(present_b)}.items()
    }
    return Batch([str(i) for i in range(n)], values, torch.arange(n))


def model(**settings) -> Aligner:
    return Aligner({"a": Series(), "b": Series()}, dim=6, fusion=ConcatMLP(), **settings)


def test_vectors_have_unit_length_and_absent_rows_are_zero():
    embeddings = model(projection_hidden=16)(batch([True, False, True]))
    assert set(embeddings.vectors) == {"a", "b", "fused"}
    torch.testing.assert_close(embeddings.vectors["a"].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embeddings.vectors["b"].norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    assert embeddings.present["fused"].all()


def test_heads_share_the_space_and_their_cosines_are_averaged():
    network = model(projection_heads=3)
    embeddings = network(batch([True, False, True]))
    a, b = (embeddings.vectors[name].unflatten(1, (3, 2)) for name in "ab")
    torch.testing.assert_close(a.norm(dim=2), torch.full((3, 3), 3**-0.5))
    assert not b[1].any()
    cosines = torch.cosine_similarity(a[0], b[2], dim=1)
    torch.testing.assert_close(embeddings.vectors["a"][0] @ embeddings.vectors["b"][2], cosines.mean())
    with pytest.raises(ValueError, match="dim 6 cannot be shared by 4 projection_heads"):
        model(projection_heads=4)


def test_a_computed_head_is_one_side_of_a_linear_map_and_is_not_trained():
    network = Aligner(
        {"a": Series(), "b": Series(), "c": Series()}, 2 * WIDTH, projection_heads=2, least_squares=("a", "b")
    )
    source, target = network.computed_head("a"), network.computed_head("b")
    mean, weight, pooled = torch.randn(WIDTH), torch.randn(WIDTH, WIDTH), torch.randn(5, WIDTH)
    source.set(mean, weight)
    target.set(mean, torch.eye(WIDTH))
    torch.testing.assert_close(network.project("a", pooled)[:, WIDTH:],
                               torch.nn.functional.normalize((pooled - mean) @ weight, dim=1))  # fmt: skip
    unit = torch.nn.functional.normalize(pooled, dim=1)
    torch.testing.assert_close(network.project("b", pooled)[:, WIDTH:],
                               torch.nn.functional.normalize(unit - mean, dim=1))  # fmt: skip
    assert not list(source.parameters())
    assert torch.equal(network.state_dict()["projections.a.1.weight"], weight)
    assert len(list(network.projections["c"][1].parameters())) == 2  # of another modality: trained


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"least_squares": ("a", "c")}, "'a', 'c'"),
        ({"least_squares": ("a", "a")}, "'a', 'a'"),
        ({"projection_heads": 1}, "projection_heads, 1,"),
        ({"dim": 4 * WIDTH}, f"width of the b tower, {WIDTH}"),
    ],
)
def test_a_computed_head_that_cannot_be_is_refused(wrong, message):
    settings = {"dim": 2 * WIDTH, "projection_heads": 2, "least_squares": ("a", "b")} | wrong
    with pytest.raises(ValueError, match=message):
        Aligner({"a": Series(), "b": Series()}, **settings)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_row_does_not_depend_on_its_neighbours(heads):
    network = model(projection_heads=heads).eval()
    samples = batch([True, False, True])
    whole = network(samples)
    for i in range(3):
        alone = network(samples.rows(i, i + 1))
        for name, vectors in whole.vectors.items():
            torch.testing.assert_close(alone.vectors[name][0], vectors[i], rtol=1e-5, atol=1e-6)


def test_a_batch_without_any_row_of_a_modality():
    embeddings = model()(batch([False, False]))
    assert not embeddings.vectors["b"].any()
    assert torch.isfinite(embeddings.vectors["fused"]).all()


def test_language_rows_have_no_fused_vector_and_no_part_in_losses_on_it():
    network, samples = model().eval(), batch([True, False, True, True, True])
    language = torch.tensor([False, False, False, True, True])
    embeddings = network(replace(samples, language=language))
    plain = network(samples)
    assert torch.equal(embeddings.present["fused"], ~language)
    assert not embeddings.vectors["fused"][language].any()
    torch.testing.assert_close(embeddings.vectors["fused"][~language], plain.vectors["fused"][~language])
    assert torch.equal(embeddings.present["b"], plain.present["b"])
    loss = InfoNCE("fused", "b")
    assert loss.anchor_count(embeddings) == 2
    expected = loss(network(samples.rows(0, 3)))
    torch.testing.assert_close(loss(embeddings), expected)


def test_a_frozen_tower_builds_no_graph():
    network = model()
    network.encoders["a"].requires_grad_(False)
    embeddings = network(batch([True, True]))
    assert not embeddings.pooled["a"].requires_grad
    assert embeddings.pooled["b"].requires_grad
    assert embeddings.vectors["a"].requires_grad  # its projection is trained


def test_cached_features_equal_the_tower():
    network = model().eval()
    samples = batch([True, True])
    values = samples.modalities["a"]
    features = Values(values.present, features=network.encode("a", values).pooled)
    cached = Batch(samples.keys, {"a": features}, samples.group)
    torch.testing.assert_close(network(cached).vectors["a"], network.embed("a", values))


def test_reserved_names():
    with pytest.raises(ValueError, match="fused"):
        Aligner({"fused": Series()})


def test_length_buckets_change_nothing():
    tower = Series().eval()
    values = torch.randn(40, 12, 3)
    mask = torch.arange(12) < torch.randint(0, 13, (40, 1))
    plain, fast = tower(values, mask), bucketed(tower, values, mask, buckets=4)
    torch.testing.assert_close(fast.pooled, plain.pooled)
    torch.testing.assert_close(fast.sequence * fast.mask[..., None], (plain.sequence * plain.mask[..., None]))
    assert torch.equal(fast.mask, plain.mask)


class NormalisedSeries(Series):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = nn.Linear(3, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, values, mask=None):
        return Tokens.mean_pooled(self.norm(self.net(values).transpose(1, 2)).transpose(1, 2), mask)


def test_trained_batch_normalisation_sees_the_whole_batch_at_once():
    tower, calls = NormalisedSeries(), []
    values, mask = torch.randn(40, 12, 3), torch.arange(12) < torch.randint(1, 13, (40, 1))
    expected = copy.deepcopy(tower)(values, mask).pooled
    tower.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(bucketed(tower, values, mask, buckets=4).pooled, expected)
    assert tower.norm.num_batches_tracked == len(calls) == 1
    bucketed(tower.eval(), values, mask, buckets=4)
    assert len(calls) == 5
