"""Runs benchmarks: one process per side and pair, one after the other, and prints the rows as they come."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mmalign.bench.base import NO_BAR, Benchmark, Ceilings, Sample, Settings
from mmalign.bench.catalogue import NAMES, find
from mmalign.bench.ratios import Row, rows
from mmalign.bench.worker import PREPARE
from mmalign.report.style import number

_PROBE = "mmalign.bench.machine:Probe"


class SideFailed(RuntimeError):
    """A side's process ended with an error; the message holds the end of what it wrote."""


def measure_ceilings(settings: Settings) -> Ceilings:
    with tempfile.TemporaryDirectory(prefix="mmalign-bench-") as folder:
        found = run_side(_PROBE, "machine", settings, Path(folder)).measures
    return Ceilings(**{name: found[name] for name in Ceilings.__dataclass_fields__})


def run_benchmark(name: str, settings: Settings, ceilings: Ceilings) -> list[Row]:
    """All pairs of one benchmark.

    A side whose modules are not installed is left out, and so is one that fails: its rows say why, and don't hold.

    Args:
        name: as in the catalogue, or "module:Class".
    """
    kind = find(name)
    missing = {side: _lacking(modules) for side, modules in kind.needs.items() if _lacking(modules)}
    pairs: list[dict[str, Sample]] = []
    with tempfile.TemporaryDirectory(prefix="mmalign-bench-") as text:
        folder = Path(text)
        benchmark = kind(settings, folder)
        if set(missing) < set(kind.sides) or not missing:
            try:
                run_side(name, PREPARE, settings, folder)
            except SideFailed as error:
                missing |= {side: f"could not be prepared: {error}" for side in kind.sides if side not in missing}
        for pair in range(kind.pairs):
            pairs.append({})
            for side in kind.sides if pair % 2 == 0 else reversed(kind.sides):
                if side in missing:
                    continue
                try:
                    pairs[-1][side] = run_side(name, side, settings, folder)
                except SideFailed as error:
                    missing[side] = f"{side} failed: {error}"
                    pairs = [{s: sample for s, sample in p.items() if s != side} for p in pairs]
        return rows(benchmark, [p for p in pairs if p], missing, ceilings)


def run_side(name: str, side: str, settings: Settings, folder: Path) -> Sample:
    """One side in a fresh process.

    Raises:
        SideFailed: with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="mmalign-job-") as text:
        job = Path(text) / "job.json"
        order = {"benchmark": name, "side": side, "settings": settings.__dict__, "folder": str(folder)}
        job.write_text(json.dumps(order), encoding="utf-8")
        log = Path(text) / "log.txt"
        with open(log, "wb") as file:
            command = [sys.executable, "-m", "mmalign.bench.worker", str(job)]
            status = subprocess.run(command, stdout=file, stderr=file, env=_environment(name, settings)).returncode
        if status:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise SideFailed((lines[-1] if lines else f"exit status {status}").strip()[:300])
        if side == PREPARE:
            return Sample({})
        measures = json.loads(job.with_suffix(".result.json").read_text(encoding="utf-8"))
        with np.load(job.with_suffix(".arrays.npz"), allow_pickle=False) as arrays:
            return Sample(measures, {key: arrays[key] for key in arrays.files})


def _environment(name: str, settings: Settings) -> dict[str, str]:
    own = find(name).environment
    threads = {f"{library}_NUM_THREADS": str(settings.threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **threads, **offline, **own}


def _lacking(modules: tuple[str, ...]) -> str:
    absent = [module for module in modules if find_spec(module) is None]
    verb = "is" if len(absent) == 1 else "are"
    return f"{' and '.join(absent)} {verb} not installed" if absent else ""


def names_of(wanted: list[str], device: str) -> list[str]:
    """The benchmarks that are meant; none named means all for that kind of device.

    Raises:
        ValueError: one of them does not exist, or is for another device.
    """
    for name in wanted:
        if find(name).device != device:
            raise ValueError(f"benchmark {name!r} is for --device {find(name).device}, not {device}")
    return wanted or [name for name in NAMES if find(name).device == device]


def describe(row: Row) -> str:
    """One line for the terminal."""
    if row.ratio_median is None:
        return f"  {row.quantity:<44} {'–':>9}   {row.bar:>10}  NOT MEASURED: {row.note}"
    spread = f"({number(row.ratio_min or 0)} … {number(row.ratio_max or 0)})"
    verdict = "on record" if row.bar == NO_BAR else "holds" if row.holds else "FAILS"
    line = f"  {row.quantity:<44} {number(row.ratio_median):>9} {spread:<22} {row.bar:>10}  {verdict}{_figures(row)}"
    extra: Mapping[str, str] = {"note": row.note, "roofline": row.roofline}
    return line + "".join(f"\n      {name}: {text}" for name, text in extra.items() if text)


def _figures(row: Row) -> str:
    if row.mmalign_median is None or row.peer_median is None:
        return ""
    factor, unit = (1 / 2**20, "MiB") if row.unit == "bytes" else (1.0, row.unit)
    return f"  [{number(row.mmalign_median * factor)} against {number(row.peer_median * factor)} {unit}]"


def title(benchmark: type[Benchmark], row: Row | None) -> str:
    peer = f", against {row.peer}" if row is not None and row.peer != "–" else ""
    return f"{benchmark.name}: {benchmark.title}{peer}"
