"""What `mmalign export` does."""

from pathlib import Path

from mmalign.export.folder import export_model


def export(run_or_checkpoint: Path, out: Path) -> str:
    """Write the export; returns what there is in it, for the terminal."""
    folder = export_model(run_or_checkpoint, out)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)!s:40} {path.stat().st_size / 1e6:10.1f} MB" for path in files]
    return "\n".join([*lines, str(folder)])
