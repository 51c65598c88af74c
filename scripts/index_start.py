#!/usr/bin/env python3
"""How long a training waits for its first batch, and how much memory that takes, by the size of the index.

    scripts/index_start.py --samples 100000 1000000 100000000

For each size, an index of so many samples in shards of 10,000 is written (28 bytes a sample), whose shards are names of
one and the same tar. A fresh process then opens it, draws a batch of 256 of the shuffled stream, and 20 more.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from mmalign.data.config import ShardData
from mmalign.data.index import build_index
from mmalign.data.stream import Stream
from mmalign.encoders.text_bytes import BytePreprocess

TAR_SAMPLES = 1000
SHARD_SAMPLES = 10_000
BATCH = 256
MORE_BATCHES = 20


def write_directory(directory: Path, samples: int) -> None:
    first = directory / "train-000000.tar"
    with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(TAR_SAMPLES):
            text = f"text number {number}".encode()
            header = tarfile.TarInfo(f"{number:06d}.txt")
            header.size = len(text)
            tar.addfile(header, io.BytesIO(text))
    build_index(directory)
    path = directory / "index" / "train.json"
    described = json.loads(path.read_text())
    entries = np.load(directory / "index" / "train.npy")
    names = [f"train-{number:06d}.tar" for number in range(-(-samples // SHARD_SAMPLES))]
    for name in names[1:]:
        os.link(first, directory / name)
    with open(directory / "index" / "train.npy", "wb") as file:
        shape = {"descr": np.lib.format.dtype_to_descr(entries.dtype), "fortran_order": False, "shape": (samples,)}
        np.lib.format.write_array_header_1_0(file, shape)
        for number in range(len(names)):
            count = min(SHARD_SAMPLES, samples - number * SHARD_SAMPLES)
            part = entries[np.arange(count) % TAR_SAMPLES]
            part["shard"] = number
            file.write(part.tobytes())
    shard = described["shards"][0]
    described["shards"] = [shard | {"name": name, "samples": SHARD_SAMPLES} for name in names]
    described["samples"] = samples
    del described["entries_sha256"]  # of a small index it would be compared when it is opened
    path.write_text(json.dumps(described))


def resident_mib() -> dict[str, float]:
    """Memory of this process: its own, and pages of mapped files, which the system takes back when it needs them."""
    with open("/proc/self/status") as status:
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in status if line.startswith("Rss")}
    return {"own": sizes["RssAnon"], "mapped": sizes["RssFile"]}


def measure(directory: Path) -> None:
    """Prints seconds to the first batch, seconds for a later one, and MiB that were added to the process."""
    before, started = resident_mib(), time.perf_counter()
    data = ShardData(str(directory), modalities={"text": "txt"})
    stream = Stream({"d": (data, 1.0)}, {"text": BytePreprocess(64)}, BATCH, 0, "s", 1 + MORE_BATCHES)
    assert len(stream[0]) == BATCH
    first = time.perf_counter() - started
    for step in range(1, 1 + MORE_BATCHES):
        assert not stream[step].faults
    later = (time.perf_counter() - started - first) / MORE_BATCHES
    added = {name: size - before[name] for name, size in resident_mib().items()}
    print(json.dumps({"first": first, "later": later, **added}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[100_000, 10_000_000, 100_000_000])
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: the temporary folder")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    print(f"{'samples':>12} {'index':>10} {'first batch':>12} {'later batch':>12} {'memory':>10} {'mapped':>10}")
    for samples in options.samples:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            write_directory(Path(name), samples)
            size = (Path(name) / "index" / "train.npy").stat().st_size
            command = [sys.executable, __file__, "--measure", name]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{samples:12,} {size / 2**20:6.0f} MiB {found['first']:10.2f} s {found['later']:10.3f} s"
                f" {found['own']:6.0f} MiB {found['mapped']:6.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
