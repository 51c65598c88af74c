"""The contrastive benchmarks: what their floor consists of."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from mmalign.bench.base import Ceilings, Settings
from mmalign.bench.catalogue import find
from mmalign.bench.contrastive import bare_products
from mmalign.bench.loss_step import loss_step
from mmalign.losses import tiles

BATCH = 96


@pytest.mark.parametrize("side", [20, 48, 96])
def test_the_bare_products_are_those_of_the_loss(side, monkeypatch):
    monkeypatch.setattr(tiles, "tile_shape", lambda *_: (side, side))
    counted = []
    for run in (bare_products(BATCH), loss_step(BATCH, "infonce").run):
        with FlopCounterMode(display=False) as counter:
            run()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_a_roofline_is_the_products_and_the_exponentials(tmp_path):
    benchmark = find("infonce")(Settings(), tmp_path)
    time, memory = benchmark.quantities[:2]
    medians = {"open_clip": {"seconds": 10.0}, "mmalign": {"seconds": 9.5}, "products": {"seconds": 8.0}}
    ceilings = Ceilings(1e11, 2e11, 1.75 * 8192**2, 4.0 * 4 * 8192**2)
    said = benchmark.roofline(time, medians, ceilings)
    assert "the 3.75 products alone" in said
    assert "no ratio below 0.900" in said  # eight seconds, and one for the exponentials
    assert "makes it 1.000; reached 0.950" in said
    assert "out of reach" in said
    assert benchmark.roofline(memory, medians, ceilings) == ""
