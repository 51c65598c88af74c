"""What the machine can do at most, and what it draws: the yardsticks of a run's cost."""

import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

_POWERCAP = Path("/sys/class/powercap")


def fastest(function: Callable[[], Any], times: int = 10, device: torch.device | None = None) -> float:
    """Seconds of the fastest call, after one to warm up."""
    timed(function, device)
    return max(min(timed(function, device) for _ in range(times)), 1e-9)


def timed(function: Callable[[], Any], device: torch.device | None = None) -> float:
    """Seconds of one call, up to the end of what it has started on a GPU."""
    started = time.perf_counter()
    function()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@cache
def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a matrix product, measured once per process, with the threads that torch has."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.ones(2, side, side, device=device, dtype=dtype).unbind()  # no random numbers: the run's are its own
    out = torch.empty_like(a)
    return 2 * side**3 / fastest(lambda: torch.mm(a, b, out=out), 5, device)


class EnergyMeter:
    """Joules since it was made, from the counters that the machine shows: RAPL for its processors, NVML for a GPU.

    Of RAPL's zones only packages count: "psys" is the whole board, packages included, and the zones within a package
    are parts of it, or its memory. RAPL's counters are small and start again; `update` must be called more often than
    that (every few minutes). NVML is read through nvidia-ml-py: `pip install 'mmalign[gpu]'`.

    Attributes:
        joules: up to the last update; None where nothing can be read.

    Args:
        device: the GPU that counts, if it is one.
        powercap: the folder of RAPL's zones; Linux lets only some users read it.
    """

    def __init__(self, device: torch.device, powercap: Path = _POWERCAP) -> None:
        self._zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _is_package(zone)]
        self._gpu_joules = _gpu_counter(device)
        self._last = self._read()
        self.joules: float | None = 0.0 if self._last else None

    def update(self) -> None:
        if self.joules is None:
            return
        now = self._read()
        for name, (joules, span) in now.items():
            gained = joules - self._last.get(name, (joules, span))[0]
            self.joules += gained if gained >= 0 else gained + span
        self._last = now

    def _read(self) -> dict[str, tuple[float, float]]:
        """By counter: its value, and what it counts up to; in joules."""
        found = {}
        for zone in self._zones:
            try:
                microjoules, span = (int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
            except (OSError, ValueError):
                continue
            found[zone.name] = microjoules / 1e6, span / 1e6
        if self._gpu_joules is not None:
            found["gpu"] = self._gpu_joules(), 0.0  # never starts again while the driver is loaded
        return found


def _is_package(zone: Path) -> bool:
    try:
        return zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _gpu_counter(device: torch.device) -> Callable[[], float] | None:
    """Reads a GPU's joules; None where the device is none, or none that counts."""
    if device.type != "cuda":
        return None
    try:
        pynvml = import_module("pynvml")
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no library, an old driver, a GPU that doesn't count: then its energy is not known
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
