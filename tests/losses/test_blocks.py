"""Contrasting within blocks."""

import torch
import torch.nn.functional as F

from mmalign.batch import Embeddings
from mmalign.losses import InfoNCE, NextToken, SigLIP, blockwise, restrict


def embeddings(batch: int = 10) -> Embeddings:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(batch, 5, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
    table = torch.rand(batch, 2, dtype=torch.float64)
    present = {"a": torch.arange(batch) != 3, "b": torch.arange(batch) != 7}
    return Embeddings({"a": a, "b": b}, present, torch.arange(batch) // 2, {"text": table})


def test_one_block_is_the_plain_loss():
    values = embeddings()
    for loss in (InfoNCE("a", "b"), SigLIP("a", "b"), NextToken()):
        loss.double()
        found = blockwise(loss, values, torch.full((10,), 3))
        assert torch.allclose(found, loss(values), rtol=1e-7)


def test_blocks_weigh_by_their_anchors():
    values = embeddings()
    block = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    loss = InfoNCE("a", "b").double()
    part = [Embeddings({k: v[s] for k, v in values.vectors.items()}, {k: v[s] for k, v in values.present.items()}, g)
            for s, g in ((slice(0, 6), values.group[:6]), (slice(6, 10), values.group[6:]))]  # fmt: skip
    expected = (5 * loss(part[0]) + 3 * loss(part[1])) / 8
    assert torch.allclose(blockwise(loss, values, block), expected, rtol=1e-7)


def test_rows_of_a_block_have_no_say_in_another():
    values = embeddings()
    block = torch.arange(10) // 5
    first = restrict(values, block == 0)
    gradient = torch.autograd.grad(InfoNCE("a", "b").double()(first), [values.vectors["b"]])[0]
    assert gradient[:5].any()
    assert not gradient[5:].any()
    assert not first.likelihoods["text"][5:].any()


def test_parts_of_ranks_add_up():
    values = embeddings()
    block = torch.tensor([0, 1, 0, 1, 0, 0, 1, 0, 1, 1])
    loss = InfoNCE("a", "b").double()
    ranks = [Embeddings(**{**vars(values), "rows": rows}) for rows in ((0, 4), (4, 10))]
    parts = [blockwise(loss, rank, block) for rank in ranks]
    assert torch.allclose(sum(parts), blockwise(loss, values, block), rtol=1e-10)
