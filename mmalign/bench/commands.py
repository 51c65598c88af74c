"""What `mmalign bench` does."""

from pathlib import Path
from typing import Any

from mmalign.bench.base import Settings
from mmalign.bench.catalogue import NAMES, find
from mmalign.bench.machine import physical_cores
from mmalign.bench.ratios import bars_held
from mmalign.bench.results import facts, open_results, put_rows, save
from mmalign.bench.run import describe, measure_ceilings, names_of, run_benchmark, title

RESULTS = {"cpu": Path("configs/results/benchmarks.json"), "cuda": Path("configs/results/benchmarks_cuda.json")}
"""By device."""


def list_benchmarks() -> None:
    """Names, what they do, and their bars."""
    for name in NAMES:
        kind = find(name)
        print(f"{name}: {kind.title}" + ("" if kind.device == "cpu" else f" (--device {kind.device})"))
        for quantity in kind.quantities:
            print(f"    {quantity.label} {quantity.bar}" + (f" (peer: {quantity.peer})" if quantity.other else ""))


def bench(names: list[str], growth: bool, out: Path | None, threads: int | None, scale: float, device: str) -> int:
    """Run benchmarks, print rows, and keep them in the file of results.

    Args:
        names: which; none means all for the device, or with `growth` none.
        growth: measure growth as well.
        out: file of results; None means that of RESULTS where its folder exists and the scale is 1, otherwise no file.
        threads: None means one per physical core.
        scale: share of the full size.
        device: "cpu" or "cuda".

    Returns: 0; a bar that is missed is a result and no error.

    Raises:
        ValueError: an unknown benchmark or one for another device, a device that is not there, a scale outside (0, 1],
            or a file with figures of another machine.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"--scale {scale:g}: must be above 0 and at most 1")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads {threads}: must be at least 1")
    if growth and device != "cpu":
        raise ValueError(f"--growth is measured on the cpu, not on --device {device}")
    wanted = names_of(names, device) if names or not growth else []
    if device != "cpu":
        from mmalign.training.device import named_device

        named_device(device)
    settings = Settings(threads or physical_cores(), scale, device)
    if out is None and scale == 1 and RESULTS[device].parent.is_dir():
        out = RESULTS[device]
    content = {**facts(settings), "rows": [], "growth": None} if out is None else open_results(out, settings)
    _print_facts(content)
    ceilings = measure_ceilings(settings)
    for name in wanted:
        found = run_benchmark(name, settings, ceilings)
        print(f"\n{title(find(name), found[0] if found else None)}", flush=True)
        for row in found:
            print(describe(row), flush=True)
        put_rows(content, found, ceilings)
        _keep(out, content)
    if growth:
        from mmalign.bench.growth import measure_growth, print_growth

        content["growth"] = measure_growth(settings)
        print_growth(content["growth"])
        if out is not None:
            from mmalign.bench.growth_plot import save_plot

            out.parent.mkdir(parents=True, exist_ok=True)
            save_plot(content["growth"], out.with_name("growth.png"))
        _keep(out, content)
    _print_summary(content)
    return 0


def _keep(out: Path | None, content: dict[str, Any]) -> None:
    """Save, and write the README anew where the file is the one that it shows."""
    if out is None:
        return
    save(out, content)
    if out in RESULTS.values() and Path("README.md").exists():
        from mmalign.report.readme import update_readme

        update_readme(Path("README.md"), out.parent)


def _print_facts(content: dict[str, Any]) -> None:
    known = ", ".join(f"{name} {found}" for name, found in content["versions"].items() if found)
    size = "" if content["scale"] == 1 else f"; sizes are {content['scale']:g} of the full ones: bars do not apply"
    print(f"{content['machine']}, {content['threads']} threads; {known}{size}")
    print(f"ratios are mmalign over peer: median (min … max) of at least 5 pairs; memory: {content['memory']}")


def _print_summary(content: dict[str, Any]) -> None:
    rows = content["rows"]
    if rows:
        missing = sum(row["ratio_median"] is None for row in rows)
        print(f"\n{bars_held(rows)} bars hold; {missing} could not be measured")
