"""How long the command takes to say what it can do."""

import subprocess
import sys
import time
from collections.abc import Callable

from mmalign.bench.base import Benchmark, Outcome, Quantity


class CommandLine(Benchmark):
    """Whole processes, from start to end."""

    name = "command"
    title = "`mmalign --help` and `import mmalign`, whole processes"
    sides = ("help", "import")
    quantities = (
        Quantity("seconds of `mmalign --help`", "seconds", "help", None, "–", "<= 0.5"),
        Quantity("seconds of `import mmalign`", "seconds", "import", None, "–", "<= 0.2"),
    )

    def load(self, side: str) -> Callable[[], Outcome]:
        command = [sys.executable, *(["-m", "mmalign", "--help"] if side == "help" else ["-c", "import mmalign"])]

        def run() -> Outcome:
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return Outcome(seconds=time.perf_counter() - started)

        run()  # byte code and files are in the cache, as after the first use
        return run
