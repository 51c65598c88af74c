"""What the figures were measured on: the machine, its ceilings, the versions."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmalign.bench.base import Benchmark, Ceilings, Outcome, Settings

_PACKAGES = (
    "mmalign", "torch", "numpy", "lightning", "open_clip_torch", "clip_benchmark", "webdataset", "librosa",
    "transformers", "timm",
)  # fmt: skip


def versions(device: str = "cpu") -> dict[str, str | None]:
    """Of Python and of the packages that take part; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*_PACKAGES, *(("inf_cl",) if device == "cuda" else ())):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def machine(device: str = "cpu") -> str:
    """Processor and cores, such as "AMD EPYC, 2 cores", and before them the GPU where it is what counts."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    processor = f"{' '.join(name.split())}, {physical_cores()} cores"
    if device != "cuda":
        return processor
    import torch

    return f"{torch.cuda.get_device_name()}; {processor}"


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(tuple((topology / name).read_text().strip() for name in ("physical_package_id", "core_id")))
        except OSError:
            cores.add((str(cpu),))
    return max(1, len(cores))


def matrix_extension() -> str:
    """ "AMX" or "AVX512_BF16", where the processor multiplies bfloat16 matrices in hardware; "" elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return "AMX" if "amx_bf16" in flags else "AVX512_BF16" if "avx512_bf16" in flags else ""


class Probe(Benchmark):
    """Measures the ceilings; a benchmark only in that it runs in a process with the same threads."""

    name, title, sides, quantities = "ceilings", "what the machine does at most", ("machine",), ()

    def load(self, side: str) -> Callable[[], Outcome]:
        return lambda: Outcome(values=_ceilings(self.settings).to_dict())


def _ceilings(settings: Settings) -> Ceilings:
    import torch

    from mmalign.training.ceiling import fastest

    device = torch.device(settings.device)
    side = 512 if settings.scale < 0.5 else 2048 if device.type == "cpu" else 16384
    numbers = 1 << 17 if device.type == "cpu" else 1 << 22  # they stay in the cache; on a GPU, enough to fill it
    a, b = torch.randn(side, 512, device=device), torch.randn(512, side, device=device)
    out = torch.empty(side, side, device=device)
    halves = a.bfloat16(), b.bfloat16(), out.bfloat16()
    small = torch.randn(numbers, device=device)
    large, copy = torch.zeros(2, 1 << 25, device=device).unbind()
    operations = 2 * side * side * 512
    return Ceilings(
        matmul_flops=operations / fastest(lambda: torch.mm(a, b, out=out), device=device),
        bf16_matmul_flops=operations / fastest(lambda: torch.mm(halves[0], halves[1], out=halves[2]), device=device),
        exp_per_second=small.numel() / fastest(lambda: torch.exp(small, out=small).clamp_(max=1.0), 30, device),
        bytes_per_second=2 * 4 * large.numel() / fastest(lambda: copy.copy_(large), device=device),
    )
