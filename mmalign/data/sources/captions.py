"""Pictures with captions as people keep them: a folder, a table, a Hugging Face data set on disk."""

import csv
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from mmalign.data.sources.base import split_shares
from mmalign.data.sources.paired import (
    PICTURE_SUFFIXES,
    Item,
    PairedSource,
    divided,
    inside,
    stored_picture,
)

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


class _Pictures(PairedSource):
    """Pictures whose items are all known beforehand, divided by their own splits or by a hash."""

    def __init__(self, side: int) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"side is {side}, must be at least 1 pixel")
        self.side = side
        self._divided: dict[str, list[Item]] | None = None

    @abstractmethod
    def _divide(self) -> dict[str, list[Item]]: ...

    def _splits(self) -> dict[str, list[Item]]:
        if self._divided is None:
            self._divided = self._divide()
        return self._divided

    def splits(self) -> list[str]:
        return list(self._splits())

    def items(self, split: str) -> Iterator[Item]:
        yield from self._splits()[split]

    def stored(self, item: Item) -> tuple[str, bytes]:
        return stored_picture(item.read(), self.side)


class Folder(_Pictures):
    """A folder of pictures `NAME.jpg` (or png, webp, …), each with its captions in `NAME.txt`, one a line.

    Where the folder has a subfolder `train`, its subfolders are the splits; otherwise pictures are divided by a hash,
    and those that share a caption stay on one side.

    Args:
        directory: the folder; subfolders are searched, too.
        side: longest side of a stored picture in pixels.
        val_share, test_share: of the pictures, where the folder has no splits of its own.
        seed: of that division.
        licence: of the pictures, for the data card.
    """

    name = "folder"
    description = "Pictures and captions from a folder."

    def __init__(
        self,
        directory: Path,
        side: int = 512,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
        licence: str = "not stated",
    ):
        super().__init__(side)
        if not Path(directory).is_dir():
            raise FileNotFoundError(f"directory {directory} does not exist")
        self.directory, self.val_share, self.test_share = Path(directory), val_share, test_share
        self.seed, self.licence = seed, licence
        self._shares = split_shares(val_share, test_share)

    def provenance(self) -> dict[str, Any]:
        return {"origin": f"folder {self.directory.name}", "contents_sha256": self.contents_sha256()}

    def _divide(self) -> dict[str, list[Item]]:
        if not any(path.suffix.lower() in PICTURE_SUFFIXES for path in self.directory.rglob("*")):
            raise ValueError(f"{self.directory} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
        if not (self.directory / "train").is_dir():
            return divided(self._found(self.directory), self._shares, self.seed)
        names = sorted(path.name for path in self.directory.iterdir() if path.is_dir() and path.name != "train")
        return {split: list(self._found(self.directory / split)) for split in ["train", *names]}

    def _found(self, folder: Path) -> Iterator[Item]:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                name, text = str(path.relative_to(self.directory)), path.with_suffix(".txt")
                try:
                    captions = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
                except UnicodeDecodeError:
                    self._account.note("captions that are not UTF-8", name)
                    continue
                yield Item(name, path, tuple(captions))


class Table(_Pictures):
    """A CSV, TSV or Parquet table with a row per caption (or, in Parquet, a list of captions per row).

    Rows with the same picture become one sample. Pictures are paths relative to `picture_root`, from which they cannot
    lead out; in Parquet also bytes, plain or as a struct with `bytes`, which stay in memory during the build.

    Args:
        path: the table.
        picture_column, caption_column: names of its columns.
        split_column: None divides the pictures by a hash, those that share a caption on one side.
        picture_root: None means the folder of the table.
        side: longest side of a stored picture in pixels.
        val_share, test_share: of the pictures, without a `split_column`.
        seed: of that division.
        licence: of the pictures, for the data card.
    """

    name = "table"
    description = "Pictures and captions from a table."

    def __init__(
        self,
        path: Path,
        picture_column: str = "image",
        caption_column: str = "caption",
        split_column: str | None = None,
        picture_root: Path | None = None,
        side: int = 512,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
        licence: str = "not stated",
    ):
        super().__init__(side)
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"table {path} does not exist")
        if self.path.suffix not in (*_SEPARATORS, ".parquet"):
            raise ValueError(f"table {path} is none of .csv, .tsv, .parquet")
        self.picture_column, self.caption_column, self.split_column = picture_column, caption_column, split_column
        self.picture_root, self.val_share, self.test_share = picture_root, val_share, test_share
        self.seed, self.licence = seed, licence
        self._shares = split_shares(val_share, test_share)
        self._root = Path(picture_root or self.path.parent)

    def provenance(self) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"origin": self.path.name, "sha256": digest, "contents_sha256": self.contents_sha256()}

    def _divide(self) -> dict[str, list[Item]]:
        captions: dict[str, list[str]] = {}
        media: dict[str, Path | bytes] = {}
        splits: dict[str, str] = {}
        for number, row in enumerate(self._rows()):
            missing = [name for name in (self.picture_column, self.caption_column) if name not in row]
            if self.split_column is not None and self.split_column not in row:
                missing.append(self.split_column)
            if missing:
                raise ValueError(f"{self.path}: there is no column {missing[0]!r}; it has {', '.join(map(str, row))}")
            name, picture = self._picture(row[self.picture_column], number)
            if picture is None:
                self._account.note("no path inside the picture root", name)
                continue
            told = row[self.caption_column]
            captions.setdefault(name, []).extend([told] if isinstance(told, str) else told or [])
            media[name] = picture
            split = "" if self.split_column is None else str(row[self.split_column])
            if splits.setdefault(name, split) != split:
                raise ValueError(f"{self.path}: picture {name!r} is in split {splits[name]!r} and in {split!r}")
        items = [Item(name, media[name], tuple(captions[name])) for name in media]
        if self.split_column is None:
            return divided(items, self._shares, self.seed)
        order = sorted(set(splits.values()), key=lambda split: (split != "train", split))
        return {split: [item for item in items if splits[item.name] == split] for split in order}

    def _picture(self, value: Any, number: int) -> tuple[str, Path | bytes | None]:
        if isinstance(value, dict) and value.get("bytes") is not None:
            return str(value.get("path") or f"row-{number:08d}"), value["bytes"]
        if isinstance(value, bytes):
            return f"row-{number:08d}", value
        name = str(value["path"] if isinstance(value, dict) else value)
        return name, inside(self._root, name)

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self.path.suffix != ".parquet":
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file, delimiter=_SEPARATORS[self.path.suffix])
            return
        for batch in _needed("pyarrow.parquet", "a Parquet table").ParquetFile(self.path).iter_batches():
            yield from batch.to_pylist()


class HubDataset(_Pictures):
    """A Hugging Face data set of pictures that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    A `DatasetDict` keeps its splits; a `Dataset` is divided by a hash. Nothing of the data set is executed.

    Args:
        directory: what was written.
        picture_column: its pictures.
        caption_column: texts, or lists of texts.
        side: longest side of a stored picture in pixels.
        val_share, test_share: of the pictures of a `Dataset`.
        seed: of that division.
        licence: of the pictures, for the data card.
    """

    name = "hub"
    description = "Pictures and captions from a Hugging Face data set."

    def __init__(
        self,
        directory: Path,
        picture_column: str = "image",
        caption_column: str = "caption",
        side: int = 512,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
        licence: str = "not stated",
    ):
        super().__init__(side)
        if not Path(directory).is_dir():
            raise FileNotFoundError(f"directory {directory} does not exist")
        self.directory, self.picture_column, self.caption_column = Path(directory), picture_column, caption_column
        self.val_share, self.test_share, self.seed, self.licence = val_share, test_share, seed, licence
        self._shares = split_shares(val_share, test_share)
        self._datasets = _needed("datasets", "a Hugging Face data set")

    def provenance(self) -> dict[str, Any]:
        return {"origin": f"data set {self.directory.name}", "contents_sha256": self.contents_sha256()}

    def _divide(self) -> dict[str, list[Item]]:
        loaded = self._datasets.load_from_disk(str(self.directory))
        if isinstance(loaded, self._datasets.DatasetDict):
            return {split: list(self._rows(loaded[split], split)) for split in loaded}
        return divided(self._rows(loaded, "row"), self._shares, self.seed)

    def _rows(self, rows: Any, prefix: str) -> Iterator[Item]:
        for column in (self.picture_column, self.caption_column):
            if column not in rows.column_names:
                raise ValueError(f"{self.directory}: no column {column!r}; it has {', '.join(rows.column_names)}")
        pictures = rows.cast_column(self.picture_column, self._datasets.Image(decode=False))
        for number, told in enumerate(rows[self.caption_column]):
            captions = (told,) if isinstance(told, str) else tuple(told or ())
            yield Item(f"{prefix}-{number:08d}", partial(_hub_picture, pictures, number, self.picture_column), captions)


def _hub_picture(rows: Any, number: int, column: str) -> bytes:
    picture = rows[number][column]
    return picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes()


def _needed(module: str, what: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ModuleNotFoundError(f"{what} needs the package {package}: pip install {package}") from error
