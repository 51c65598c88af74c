"""`mmalign report`."""

import os
from collections.abc import Sequence
from pathlib import Path


def report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one or several runs, at once; returns its path.

    Args:
        out: None means report.html in the first run's directory.

    Raises:
        FileNotFoundError: one of them is no run directory.
        ValueError: there is none, or two runs of one arm have the same seed.
    """
    from mmalign.report.html import render
    from mmalign.report.run import Run

    if not runs:
        raise ValueError("a report needs at least one run directory")
    page = render([Run(Path(path)) for path in runs])
    target = Path(runs[0]) / "report.html" if out is None else out
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, target)
    return target
