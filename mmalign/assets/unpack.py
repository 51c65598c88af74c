"""Taking one member (a file or a folder) out of an archive, without letting the archive write anywhere else."""

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ZIP_SUFFIXES = (".whl", ".zip")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def is_archive(path: Path) -> bool:
    return path.is_file() and path.name.endswith((*ZIP_SUFFIXES, *TAR_SUFFIXES, ".deb"))


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a wheel, zip, tar or Debian package into an existing empty folder.

    Raises:
        ValueError: the archive is broken or of an unknown kind, or a member or link of it would lie outside `folder`.
    """
    try:
        if archive.name.endswith(ZIP_SUFFIXES):
            _unpack_zip(archive, folder)
        elif archive.name.endswith(TAR_SUFFIXES):
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        elif archive.name.endswith(".deb"):
            _unpack_deb(archive, folder)
        else:
            raise ValueError(f"{archive.name}: no known kind of archive")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive.name}: unpacking refused: {error}") from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            # zipfile itself would quietly rename such members; an archive that has one is not what we asked for.
            if "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{archive.name}: member {name!r} lies outside the archive's folder")
        file.extractall(folder)


def _unpack_deb(archive: Path, folder: Path) -> None:
    # dpkg-deb knows every compression that packages use; tarfile's filter is what keeps members inside the folder.
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                tar.extractall(folder, filter="data")
        except BaseException:
            process.kill()
            raise
        assert process.stderr is not None
        message = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise ValueError(f"{archive.name}: dpkg-deb failed: {message}")


def take(origin: Path, member: str, folder: Path) -> str:
    """Moves `member` of the unpacked `origin` into `folder`: a folder's content, or one file.

    Returns the file's name, "" for a folder.

    Raises:
        ValueError: there is no such member, or a link in it leads out of it.
    """
    found = origin / member if member else origin
    if not found.exists():
        raise ValueError(f"no member {member!r} in what was downloaded")
    if found.is_file():
        shutil.move(found, folder / found.name)
        return found.name
    _refuse_outward_links(found)
    for child in sorted(found.iterdir()):
        shutil.move(child, folder / child.name)
    return ""


def copy(origin: Path, folder: Path) -> str:
    """Copies a file, or a folder's content, into `folder`. Returns and raises what `take` does."""
    if not origin.exists():
        raise ValueError(f"{origin} does not exist")
    if origin.is_file():
        shutil.copyfile(origin, folder / origin.name)
        return origin.name
    _refuse_outward_links(origin)
    shutil.copytree(origin, folder, symlinks=True, dirs_exist_ok=True)
    return ""


def _refuse_outward_links(folder: Path) -> None:
    root = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ValueError(f"link {path.relative_to(folder)} leads out of its folder, to {path.readlink()}")
