"""Nats per token."""

import torch

from mmalign.batch import Embeddings
from mmalign.losses import NextToken


def embeddings(likelihoods: dict[str, torch.Tensor], rows: tuple[int, int] | None = None) -> Embeddings:
    vectors = torch.randn(4, 3, requires_grad=True)
    return Embeddings(
        {"text": vectors}, {"text": torch.ones(4, dtype=torch.bool)}, torch.arange(4), likelihoods, {}, rows
    )


def test_every_token_weighs_the_same_and_parts_add_up():
    table = torch.tensor([[6.0, 3.0], [0.0, 0.0], [10.0, 1.0], [2.0, 4.0]], requires_grad=True)
    loss = NextToken()
    whole = loss(embeddings({"text": table}))
    assert whole.item() == 18 / 8
    parts = [loss(embeddings({"text": table}, rows)) for rows in ((0, 1), (1, 4))]
    assert sum(parts).item() == whole.item()
    whole.backward()
    assert table.grad is not None
    assert torch.equal(table.grad[:, 0], torch.full((4,), 1 / 8))


def test_without_language_text_zero_with_zero_gradients():
    table = torch.zeros(4, 2, requires_grad=True)
    for likelihoods in ({"text": table}, {}, {"other": table + 1}):
        values = embeddings(likelihoods)
        loss = NextToken()(values)
        assert loss.item() == 0.0
        loss.backward()
    assert values.vectors["text"].grad is not None
    assert not values.vectors["text"].grad.any()
