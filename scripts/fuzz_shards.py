#!/usr/bin/env python3
"""Damage shards in thousands of random ways, and see that nothing crashes, hangs, grows or vanishes.

    scripts/fuzz_shards.py --runs 10000

Each run changes a tar of real pictures, recordings and texts (bits, random bytes, cuts, blocks lost, doubled or wiped),
reads it with the index made before the damage and with one made after, and decodes every sample.
"""

import argparse
import functools
import io
import json
import random
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from mmalign.data.check import check_sample
from mmalign.data.faults import Limits, SampleError
from mmalign.data.index import build_index
from mmalign.data.shardset import ShardSet

SAMPLES = 10
TAR = "train-000000.tar"
FORMATS = (("png", "jpg", "webp"), ("flac", "ogg", "wav"))


@functools.cache  # Ogg streams get a random serial number
def members(number: int) -> dict[str, bytes]:
    generator = np.random.default_rng(number)
    image, audio = (names[number % 3] for names in FORMATS)
    picture, recording, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pixels = generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture, "JPEG" if image == "jpg" else image)
    soundfile.write(recording, 0.1 * generator.standard_normal(2000), 8000, format=audio.upper())
    np.save(array, generator.standard_normal((20, 3)))
    return {
        image: picture.getvalue(),
        audio: recording.getvalue(),
        "npy": array.getvalue(),
        "txt": f"text {number}".encode(),
        "json": json.dumps({"captions": {"en": [f"one {number}"]}, "group": str(number)}).encode(),
    }


def write(path: Path, form: int) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for number in range(SAMPLES):
            for extension, data in members(number).items():
                header = tarfile.TarInfo(f"{number:06d}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def mutate(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.randint(1, 5)):
        if not changed:
            break
        at = generator.randrange(len(changed))
        block, length = at - at % 512, 512 * generator.randint(1, 4)
        match generator.randrange(7):
            case 0:
                changed[at] ^= 1 << generator.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at : at + 16] = generator.randbytes(16)
            case 3:
                del changed[block : block + length]
            case 4:
                changed[block:block] = changed[block : block + length]
            case 5:
                changed[block : block + length] = bytes(length)
            case 6:  # the fields of a header, where there is one, with a checksum that holds again
                header = changed[block : block + 512]
                if len(header) == 512:
                    field = generator.choice([(0, 100), (124, 136), (156, 157), (345, 500)])
                    header[slice(*field)] = generator.randbytes(field[1] - field[0])
                    header[148:156] = b" " * 8
                    header[148:156] = b"%06o\0 " % sum(header)
                    changed[block : block + 512] = header
    return bytes(changed)


def read_all(directory: Path, limits: Limits) -> tuple[dict[str, dict[str, bytes]], int, int]:
    """(members of each sample that is whole, samples that are faults, samples in all)."""
    samples = ShardSet.open(directory, "train", limits)
    used, lost = {}, 0
    for index in range(len(samples)):
        try:
            sample = samples.read(index)
            check_sample(sample, limits)
            used[sample.key] = sample.members
        except SampleError as error:
            samples.fault(index, error)
            lost += 1
    return used, lost, len(samples)


def run(seed: int, directory: Path, original: bytes, index: dict[str, bytes], limits: Limits) -> None:
    data = mutate(original, random.Random(seed))
    (directory / TAR).write_bytes(data)
    for name, content in index.items():
        (directory / "index" / name).write_bytes(content)
    used, lost, count = read_all(directory, limits)
    if count != SAMPLES or len(used) + lost != SAMPLES:
        raise AssertionError(f"seed {seed}: {len(used)} used + {lost} faults of {SAMPLES} samples")
    if any(found != members(int(key)) for key, found in used.items()):
        raise AssertionError(f"seed {seed}: a sample was used that is not as it was put in")
    for path in (directory / "index").iterdir():
        path.unlink()
    made = build_index(directory, tolerate=True)["train"]
    used, lost, count = read_all(directory, limits)
    if count != made.samples or len(used) + lost != count:
        raise AssertionError(f"seed {seed}: the new index lists {made.samples}, {len(used)} used + {lost} faults")
    # Whole members that were cut out leave a valid tar, which nobody can tell; nor a name that was changed and signed.
    shorter, renamed = len(data) < len(original), not set(used) <= {f"{number:06d}" for number in range(SAMPLES)}
    if len(used) < SAMPLES and not (made.faults or lost or shorter or renamed):
        raise AssertionError(f"seed {seed}: {SAMPLES - len(used)} samples vanished without a fault")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--max-seconds", type=float, default=5.0, help="longer for one run counts as a hang")
    arguments = parser.parse_args()
    limits = Limits()
    slowest = 0.0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
            directory = Path(name) / str(form)
            directory.mkdir()
            write(directory / TAR, form)
            build_index(directory)
            original = (directory / TAR).read_bytes()
            index = {path.name: path.read_bytes() for path in (directory / "index").iterdir()}
            for seed in range(arguments.seed, arguments.seed + arguments.runs // 2):
                began = time.process_time()
                run(seed, directory, original, index, limits)
                slowest = max(slowest, time.process_time() - began)
                if slowest > arguments.max_seconds:
                    raise AssertionError(f"seed {seed}: took {slowest:.1f} s")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if peak_mib > 1024:
        raise AssertionError(f"peak memory {peak_mib:.0f} MiB")
    print(
        f"{arguments.runs} shards: no crash, no loss; {time.perf_counter() - started:.0f} s, slowest "
        f"{slowest * 1000:.0f} ms, peak memory {peak_mib:.0f} MiB"
    )


if __name__ == "__main__":
    main()
