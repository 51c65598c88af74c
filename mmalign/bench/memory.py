"""Peak memory of a process, or on its GPU, beyond what it held at a given moment."""

import ctypes
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def measure_name(device: str) -> str:
    """Which measure this machine has, for the results."""
    if device == "cuda":
        return "torch.cuda.max_memory_allocated, reset after inputs, minus memory_allocated at that moment"
    if _field("VmHWM") is not None:
        return "VmHWM, reset after imports and inputs, minus VmRSS at that moment"
    return "ru_maxrss minus ru_maxrss after imports and inputs"


class PeakMemory:
    """Bytes of the highest resident size since this object was made, beyond the resident size at that moment.

    On Linux the kernel's high-water mark is put back first: without that, a peak during the imports would hide a
    smaller one of the work. (`ru_maxrss` cannot be put back, and a process inherits it from the one that started it.)
    What the allocator holds free is given back, too: the work would take it, and it would not be counted.
    """

    def __init__(self) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # glibc
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # no such file, or not allowed: the mark then counts from the start of the process
            self._start = _peak()
        else:
            self._start = _field("VmRSS") or _peak()

    def bytes(self) -> int:
        return max(0, _peak() - self._start)


class DeviceMemory:
    """The same of what torch has allocated on the current GPU."""

    def __init__(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()
        self._start = torch.cuda.memory_allocated()
        self._peak = torch.cuda.max_memory_allocated

    def bytes(self) -> int:
        return self._peak() - self._start


def _field(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def _peak() -> int:
    mark = _field("VmHWM")
    if mark is not None:
        return mark
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
