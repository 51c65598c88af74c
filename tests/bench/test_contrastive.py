"""The contrastive benchmarks: what their floor consists of."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from mmalign.bench.base import Ceilings, Settings
from mmalign.bench.catalogue import find
from mmalign.bench.contrastive import bare_products
from mmalign.bench.loss_step import loss_step
from mmalign.losses import tiles

BATCH = 96


@pytest.mark.parametrize("name", ["infonce", "siglip"])
@pytest.mark.parametrize("side", [20, 48, 96])
def test_the_bare_products_are_those_of_the_loss(name, side, monkeypatch):
    monkeypatch.setattr(tiles, "tile_shape", lambda *_: (side, side))
    bare, step = bare_products(BATCH, find(name).kept_tiles), loss_step(BATCH, name)
    counted = []
    for run in (bare, step.run):
        with FlopCounterMode(display=False) as counter:
            run()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


@pytest.mark.parametrize(("name", "products", "exponentials"), [("infonce", 3.75, 1.75), ("siglip", 3, 2)])
def test_a_roofline_is_the_products_and_the_exponentials(name, products, exponentials, tmp_path):
    benchmark = find(name)(Settings(), tmp_path)
    time, memory = benchmark.quantities[:2]
    medians = {side: {"seconds": seconds} for side, seconds in zip(benchmark.sides, (10.0, 9.0, 8.0), strict=True)}
    ceilings = Ceilings(1e11, 2e11, float(exponentials * 8192**2), float(4 * 4 * 8192**2))
    said = benchmark.roofline(time, medians, ceilings)
    assert f"the {products:g} products alone" in said
    assert "no ratio below 0.900" in said  # eight seconds, and one for the exponentials
    assert "makes it 1.000; reached 0.900" in said
    assert "out of reach" in said
    assert benchmark.roofline(memory, medians, ceilings) == ""
