"""Benchmarks for the tests of the machinery: nothing is trained, nothing takes time."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from mmalign.bench.base import Benchmark, Outcome, Quantity


class Known(Benchmark):
    """Sides that report what the tests know."""

    name, title, pairs = "known", "known figures", 5
    sides = ("peer", "mmalign", "absent", "broken")
    needs: ClassVar = {"absent": ("no_such_module_anywhere",)}
    quantities = (
        Quantity("time", "seconds", "mmalign", "peer", "a peer", "<= 0.5"),
        Quantity("rate", "rate", "mmalign", "peer", "a peer", ">= 3", unit="/s"),
        Quantity("difference", "numbers", "mmalign", "peer", "a peer", "<= 1e-6", "relative"),
        Quantity("time against the absent", "seconds", "mmalign", "absent", "nobody", "<= 100"),
        Quantity("time against the broken", "seconds", "mmalign", "broken", "a wreck", "<= 100"),
    )

    def prepare(self) -> None:
        (self.folder / "prepared").write_text("yes")

    def load(self, side: str) -> Callable[[], Outcome]:
        assert (self.folder / "prepared").read_text() == "yes"
        if side == "broken":
            raise ValueError("this side breaks")
        with open(self.folder / "order", "a") as file:
            file.write(side[0])
        seconds = 1.0 if side == "mmalign" else 4.0
        numbers = np.array([1.0, 2.0 + (1e-3 if side == "mmalign" else 0)])
        return lambda: Outcome(seconds, {"rate": 8 / seconds}, {"numbers": numbers})


class Allocates(Benchmark):
    """Holds memory before and during the work; only the latter may count."""

    name, title, sides, quantities = "allocates", "128 MiB of work, 200 MiB of inputs, 300 MiB at import", ("one",), ()

    def load(self, side: str) -> Callable[[], Outcome]:
        np.ones(300 * 2**17)
        inputs = np.ones(200 * 2**17)

        def run() -> Outcome:
            return Outcome(values={"sum": float(np.ones(128 * 2**17).sum() + inputs[0])})

        return run
