"""Rows that form no pair are told of."""

import warnings

import pytest
import torch

from mmalign.batch import Embeddings
from mmalign.losses import InfoNCE
from mmalign.training.pairs import PairWatch


def rows(texts: int, replayed: int = 0, batch: int = 8) -> Embeddings:
    here = torch.arange(batch)
    vectors = {name: torch.ones(batch, 2) for name in ("image", "text")}
    present = {"image": here >= 0, "text": here < texts}
    return Embeddings(vectors, present, here, replayed=here < replayed)


def told(embeddings: Embeddings, separate_replay: bool = False) -> list[str]:
    watch = PairWatch("one")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            watch.add({"image_text": InfoNCE("image", "text")}, embeddings, separate_replay)
        watch.warn()
        watch.warn()
    return [str(warning.message).removesuffix(" (mean of 10 batches)") for warning in caught]


@pytest.mark.parametrize("embeddings", [rows(8), rows(4), rows(8, replayed=2)])
def test_batches_of_pairs_are_passed_over(embeddings: Embeddings) -> None:
    assert told(embeddings, separate_replay=True) == []


def test_rows_without_a_partner_are_told_of_once() -> None:
    idle = "stage 'one': 5.0 of 8.0 new rows a batch are in no pair of any loss: they lack a modality"
    assert told(rows(3)) == [idle]


def test_a_loss_of_one_pair_is_told_of() -> None:
    message = "loss 'image_text' has 1.0 anchors a batch; with fewer than 2 a contrastive loss is 0"
    assert told(rows(1))[-1] == f"stage 'one': {message}"


def test_one_replayed_row_has_no_negatives() -> None:
    assert told(rows(8, replayed=1)) == []
    (message,) = told(rows(8, replayed=1), separate_replay=True)
    assert message.startswith("stage 'one': loss 'image_text' among the replayed rows has 1.0 anchors a batch")
