"""One side of one benchmark, in a process of its own: `python -m mmalign.bench.worker JOB.json`.

The job names the benchmark (class path), the side, the settings and the folder; the answer goes to two files beside it.
"""

import gc
import json
import sys
import time
from pathlib import Path

import numpy as np

from mmalign.bench.base import Settings
from mmalign.bench.catalogue import find
from mmalign.bench.memory import DeviceMemory, PeakMemory

PREPARE = "prepare"


def work(job: Path) -> None:
    """Load, measure, and write JOB.result.json and JOB.arrays.npz."""
    import torch

    order = json.loads(job.read_text(encoding="utf-8"))
    settings = Settings(**order["settings"])
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    benchmark = find(order["benchmark"])(settings, Path(order["folder"]))
    if order["side"] == PREPARE:
        benchmark.prepare()
        return
    run = benchmark.load(order["side"])
    gc.collect()
    on_gpu = settings.device == "cuda"
    memory = DeviceMemory() if on_gpu else PeakMemory()
    started = time.perf_counter()
    outcome = run()
    if on_gpu:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    measures = {"seconds": elapsed if outcome.seconds is None else outcome.seconds, "bytes": memory.bytes()}
    job.with_suffix(".result.json").write_text(json.dumps(measures | outcome.values), encoding="utf-8")
    compared = {quantity.measure for quantity in benchmark.quantities if quantity.kind != "ratio"}
    arrays = {name: values for name, values in outcome.arrays.items() if name.partition(".")[0] in compared}
    np.savez(job.with_suffix(".arrays.npz"), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
