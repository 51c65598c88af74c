"""Recordings with captions or classes: AudioCaps, Clotho and WavCaps as `aac-datasets` lays them out, and ESC-50."""

import csv
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmalign.data.sources.base import split_shares
from mmalign.data.sources.paired import Item, PairedSource, divided, inside
from mmalign.data.sources.recordings import RecordingRefused, flac_recording


class _Recordings(PairedSource):
    """Stores every recording as mono FLAC. `_tables` are the files that the captions are read from, by split."""

    def __init__(self, root: Path, sample_rate_hz: int, folder: str) -> None:
        super().__init__()
        if sample_rate_hz < 1000:
            raise ValueError(f"sample_rate_hz is {sample_rate_hz}, must be at least 1000")
        self.root, self.sample_rate_hz = Path(root), sample_rate_hz
        self._folder = self.root / folder
        if not self._folder.is_dir():
            raise FileNotFoundError(f"directory {self._folder} does not exist")

    @abstractmethod
    def _tables(self) -> dict[str, list[Path]]: ...

    def splits(self) -> list[str]:
        found = [split for split, paths in self._tables().items() if all(path.is_file() for path in paths)]
        if not found:
            first = next(path for paths in self._tables().values() for path in paths)
            raise FileNotFoundError(f"there are no captions in {self._folder}: {first} does not exist")
        return found

    def stored(self, item: Item) -> tuple[str, bytes]:
        if not isinstance(item.media, Path):
            raise TypeError(f"recording {item.name} is no file")
        if inside(self._folder, str(item.media.relative_to(self._folder))) is None:
            raise RecordingRefused("name leads out of the data set")
        if not item.media.is_file():
            raise FileNotFoundError(item.media)
        return "flac", flac_recording(item.media, self.sample_rate_hz)[0]

    def provenance(self) -> dict[str, Any]:
        tables = sorted({path for split in self.splits() for path in self._tables()[split]})
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tables}
        return {"origin": self.name, "sha256": hashes, "contents_sha256": self.contents_sha256()}


class AudioCaps(_Recordings):
    """`ROOT/AUDIOCAPS/csv_files_v1/SPLIT.csv` and `…/audio_32000Hz/SPLIT/YOUTUBEID_START.flac`.

    Clips that could not be fetched when the data set was made are missing in everybody's copy; the report counts them.

    Args:
        root: the folder that all of this lies in.
        sample_rate_hz: of the stored recordings.
        source_rate_hz: in the name of the folder of recordings.
        tables: folder of the CSV files.
    """

    name = "audiocaps"
    licence = "MIT (captions); the recordings belong to their makers"
    description = "AudioCaps: sounds of the world from AudioSet with captions by people."

    def __init__(
        self, root: Path, sample_rate_hz: int = 32_000, source_rate_hz: int = 32_000, tables: str = "csv_files_v1"
    ):
        super().__init__(root, sample_rate_hz, "AUDIOCAPS")
        self.source_rate_hz, self.tables = source_rate_hz, tables

    def _tables(self) -> dict[str, list[Path]]:
        return {split: [self._folder / self.tables / f"{split}.csv"] for split in ("train", "val", "test")}

    def items(self, split: str) -> Iterator[Item]:
        captions: dict[str, list[str]] = {}
        for row in _rows(self._tables()[split][0]):
            captions.setdefault(f"{row['youtube_id']}_{row['start_time']}.flac", []).append(row["caption"])
        folder = self._folder / f"audio_{self.source_rate_hz}Hz" / split
        for name, texts in captions.items():
            yield Item(f"{split}/{name}", folder / name, tuple(texts))


class Clotho(_Recordings):
    """`ROOT/CLOTHO_v2.1/clotho_csv_files/clotho_captions_PART.csv` and `…/clotho_audio_files/PART/*.wav`.

    development is `train`, validation `val`, evaluation `test`; five captions each.

    Args:
        root: the folder that all of this lies in.
        sample_rate_hz: of the stored recordings.
        version: in the name of the folder.
    """

    name = "clotho"
    licence = "Tampere University licence (captions, non-commercial); Creative Commons, by recording"
    description = "Clotho 2.1: Freesound recordings of 15 to 30 seconds with five captions by people each."
    _PARTS = {"train": "development", "val": "validation", "test": "evaluation"}  # noqa: RUF012

    def __init__(self, root: Path, sample_rate_hz: int = 32_000, version: str = "v2.1"):
        super().__init__(root, sample_rate_hz, f"CLOTHO_{version}")
        self.version = version

    def _tables(self) -> dict[str, list[Path]]:
        folder = self._folder / "clotho_csv_files"
        return {split: [folder / f"clotho_captions_{part}.csv"] for split, part in self._PARTS.items()}

    def items(self, split: str) -> Iterator[Item]:
        folder = self._folder / "clotho_audio_files" / self._PARTS[split]
        for row in _rows(self._tables()[split][0]):
            texts = tuple(row[f"caption_{i}"] for i in range(1, 6))
            yield Item(f"{split}/{row['file_name']}", folder / row["file_name"], texts)


class WavCaps(_Recordings):
    """`ROOT/WavCaps/json_files/SOURCE/*_final.json` and `…/Audio/SOURCE/ID.flac`.

    WavCaps has no splits: recordings are divided by a hash, those with the same caption on one side.

    Args:
        root: the folder that all of this lies in.
        sources: which of the four parts to use.
        sample_rate_hz: of the stored recordings.
        exclude: a list of identifiers to leave out, in the layout of `json_files/blacklist/*.json`; what AudioCaps,
            Clotho or ESC-50 test on must be excluded before they are evaluated.
        val_share, test_share: of the recordings.
        seed: of the division.
    """

    name = "wavcaps"
    licence = "CC-BY-4.0 (captions); academic use (recordings)"
    description = "WavCaps: recordings of four sites whose captions a language model wrote from their descriptions."
    _FILES = {  # noqa: RUF012
        "AudioSet_SL": "as_final.json",
        "BBC_Sound_Effects": "bbc_final.json",
        "FreeSound": "fsd_final.json",
        "SoundBible": "sb_final.json",
    }

    def __init__(
        self,
        root: Path,
        sources: list[str] | None = None,
        exclude: Path | None = None,
        sample_rate_hz: int = 32_000,
        val_share: float = 0.05,
        test_share: float = 0.05,
        seed: int = 0,
    ):
        super().__init__(root, sample_rate_hz, "WavCaps")
        self.sources, self.exclude = sources or list(self._FILES), exclude
        if unknown := [source for source in self.sources if source not in self._FILES]:
            raise ValueError(f"WavCaps has no part {unknown[0]!r}; it has {', '.join(self._FILES)}")
        self.val_share, self.test_share, self.seed = val_share, test_share, seed
        self._shares = split_shares(val_share, test_share)
        self._divided: dict[str, list[Item]] | None = None

    def _tables(self) -> dict[str, list[Path]]:
        folder = self._folder / "json_files"
        return {split: [folder / part / self._FILES[part] for part in self.sources] for split in self._shares}

    def items(self, split: str) -> Iterator[Item]:
        if self._divided is None:
            self._divided = divided(self._all(), self._shares, self.seed)
        yield from self._divided[split]

    def _all(self) -> Iterator[Item]:
        excluded: dict[str, set[str]] = {}
        if self.exclude is not None:
            lists = json.loads(Path(self.exclude).read_text(encoding="utf-8"))
            excluded = {source: {_stem(name) for name in names} for source, names in lists.items()}
        for source in self.sources:
            path = self._folder / "json_files" / source / self._FILES[source]
            for entry in json.loads(path.read_text(encoding="utf-8"))["data"]:
                identifier = _stem(str(entry["id"]))
                name = f"{source}/{identifier}"
                if identifier in excluded.get(source.removesuffix("_SL").removesuffix("_Sound_Effects"), set()):
                    self._account.note("on the list of exclusions", name)
                    continue
                yield Item(name, self._folder / "Audio" / source / f"{identifier}.flac", (entry["caption"],))


class ESC50(_Recordings):
    """`ROOT/ESC-50-master/meta/esc50.csv` and `…/audio/*.wav`: 50 classes; captions "the sound of CLASS".

    Folds 1 to 3 are `train`, 4 `val`, 5 `test`. The json holds `category`; samples of a class share a `group`.

    Args:
        root: the folder that all of this lies in.
        sample_rate_hz: of the stored recordings.
    """

    name = "esc50"
    licence = "CC-BY-NC-3.0"
    description = "ESC-50: 2,000 recordings of five seconds in 50 classes of environmental sound."
    _FOLDS = {"train": "123", "val": "4", "test": "5"}  # noqa: RUF012

    def __init__(self, root: Path, sample_rate_hz: int = 32_000):
        super().__init__(root, sample_rate_hz, "ESC-50-master")

    def _tables(self) -> dict[str, list[Path]]:
        return {split: [self._folder / "meta" / "esc50.csv"] for split in self._FOLDS}

    def items(self, split: str) -> Iterator[Item]:
        for row in _rows(self._tables()[split][0]):
            if row["fold"] in self._FOLDS[split]:
                category = row["category"].replace("_", " ")
                metadata = {"category": category, "fold": int(row["fold"]), "group": category}
                path = self._folder / "audio" / row["filename"]
                yield Item(row["filename"], path, (f"the sound of {category}",), metadata)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _stem(name: str) -> str:
    """Identifiers of AudioSet come as file names."""
    return name.removesuffix(".wav").removesuffix(".flac")
