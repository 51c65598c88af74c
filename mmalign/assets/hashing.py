"""SHA-256 of files and of folders."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


STAMP = "mmalign-asset.json"
"""What the cache writes into a folder beside the asset's own files; no part of the asset."""


def tree_files(folder: Path) -> list[Path]:
    """Every file and link below a folder but the stamp, by its relative path, sorted as text."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return sorted((path for path in found if path.as_posix() != STAMP), key=Path.as_posix)


def entry_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; of a link, that of where it points."""
    return hashlib.sha256(path.readlink().as_posix().encode()).hexdigest() if path.is_symlink() else file_sha256(path)


def tree_sha256(hashes: dict[str, str]) -> str:
    """One hash for a folder: that of the lines `HASH  PATH`, sorted by path. Times and permissions do not count."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
