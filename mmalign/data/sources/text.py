"""Plain English text that every machine has: the docstrings and help topics of the Python standard library."""

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmalign.data.sample import RawSample
from mmalign.data.sources.base import Source, hashed_split, json_member, key_from, split_shares

_EXCLUDED_DIRECTORIES = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "__pycache__",
    "_pyrepl",
    "lib2to3",
}
_SHINGLE_WORDS = 8
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")


class Docstrings(Source):
    """Passages of the standard library's docstrings and of `pydoc_data.topics`: text only, for language ability.

    A module's docstrings stand in the order of its file, are cut into paragraphs and packed into passages, which hold
    only whole paragraphs, unless a paragraph alone is too long. All modules of a top-level package are in one split, as
    is each help topic. A paragraph that occurs twice in a split is kept once. It is left out when at least half of its
    runs of eight words (or, when shorter, the whole) occur in a split that is filled earlier: test, val, then train.

    Args:
        directory: of the standard library; None takes that of the running Python.
        passage_characters: largest length of a passage.
        val_share: of packages and topics, likewise test_share.
        seed: another seed gives another division.
    """

    name = "docstrings"
    licence = "PSF-2.0"
    description = "Text only: passages of the Python standard library's docstrings and help topics, split by package."

    def __init__(
        self,
        directory: Path | None = None,
        passage_characters: int = 512,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
    ):
        if passage_characters < 64:
            raise ValueError(f"passage_characters is {passage_characters}, must be at least 64")
        self.directory = directory
        self.passage_characters, self.val_share, self.test_share = passage_characters, val_share, test_share
        self.seed = seed
        self._shares = split_shares(val_share, test_share)
        self._root = Path(directory or sysconfig.get_path("stdlib"))
        if not self._root.is_dir():
            raise FileNotFoundError(f"directory {self._root} does not exist")
        self._report: Counter[str] = Counter()
        self._documents: dict[str, dict[str, list[str]]] = {}
        self._hash = hashlib.sha256()

    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    def samples(self, split: str) -> Iterator[RawSample]:
        self.check_split(split)
        for name, paragraphs in self._read()[split].items():
            for i, passage in enumerate(pack(paragraphs, self.passage_characters)):
                members = {"txt": passage.encode("utf-8"), "json": json_member({"document": name, "language": "en"})}
                yield RawSample(f"{key_from(name)}_{i:05d}", members)

    def provenance(self) -> dict[str, Any]:
        self._read()
        version = sys.version.split()[0] if self.directory is None else "as in the directory"
        return {"origin": "Python standard library", "version": version, "text_sha256": self._hash.hexdigest()}

    def report(self) -> dict[str, Any]:
        self._read()
        return dict(sorted(self._report.items()))

    def _read(self) -> dict[str, dict[str, list[str]]]:
        """Paragraphs by split and document, without repetitions."""
        if not self._documents:
            raw: dict[str, dict[str, list[str]]] = {split: {} for split in self._shares}
            for name, package, text in self._texts():
                self._hash.update(f"{name}\0{text}\0".encode("utf-8", "surrogateescape"))
                raw[hashed_split(package, self._shares, salt=f"docstrings/{self.seed}")][name] = paragraphs_of(text)
            taken: set[int] = set()
            kept = {split: self._without_repetitions(raw[split], taken) for split in ("test", "val", "train")}
            self._documents = {split: kept[split] for split in self._shares}
        return self._documents

    def _texts(self) -> Iterator[tuple[str, str, str]]:
        """Name, package and text of every document, in a fixed order."""
        for path in sorted(self._root.rglob("*.py")):
            parts = path.relative_to(self._root).with_suffix("").parts
            if _EXCLUDED_DIRECTORIES & set(parts[:-1]):
                continue
            if parts[0] == "pydoc_data":
                if parts[-1] == "topics":
                    for topic, text in sorted(_topics(path).items()):
                        yield f"topic-{topic}", f"topic-{topic}", text
                continue
            try:
                docstrings = _docstrings(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError):  # templates, and files in another encoding
                self._report["modules that cannot be parsed"] += 1
                continue
            if docstrings:
                yield ".".join(parts), parts[0], "\n\n".join(docstrings)
            else:
                self._report["modules without docstrings"] += 1

    def _without_repetitions(self, documents: dict[str, list[str]], taken: set[int]) -> dict[str, list[str]]:
        """Drop what repeats this split, or nearly repeats another one, of which `taken` holds the runs of words."""
        own: set[int] = set()
        seen: set[str] = set()
        kept: dict[str, list[str]] = {}
        for name, paragraphs in documents.items():
            kept[name] = []
            for paragraph in paragraphs:
                words = re.findall(r"\w+", paragraph.lower())
                normal = " ".join(words)
                runs = _runs(words)
                if not words:
                    self._report["paragraphs without words"] += 1
                elif paragraph.lstrip().startswith(">>>"):
                    self._report["paragraphs that are interpreter sessions"] += 1
                elif normal in seen:
                    self._report["paragraphs repeated within a split"] += 1
                elif 2 * len(runs & taken) >= len(runs):
                    self._report["paragraphs near those of another split"] += 1
                else:
                    kept[name].append(paragraph)
                    own |= runs
                seen.add(normal)
        taken |= own
        return {name: paragraphs for name, paragraphs in kept.items() if paragraphs}


def paragraphs_of(text: str) -> list[str]:
    """Parts between blank lines, without trailing spaces."""
    parts = re.split(r"\n[ \t]*\n", text.expandtabs())
    return [
        cleaned
        for part in parts
        if (cleaned := "\n".join(line.rstrip() for line in part.strip("\n").split("\n"))).strip()
    ]


def pack(paragraphs: list[str], limit: int) -> list[str]:
    """Passages of at most `limit` characters: as many whole paragraphs as fit, a blank line between them.

    A paragraph that is longer is cut after sentences, failing that between words, failing that anywhere.
    """
    passages: list[str] = []
    for piece in (piece for paragraph in paragraphs for piece in _pieces(paragraph, limit)):
        if passages and len(passages[-1]) + 2 + len(piece) <= limit:
            passages[-1] += "\n\n" + piece
        else:
            passages.append(piece)
    return passages


def _pieces(paragraph: str, limit: int) -> Iterator[str]:
    if len(paragraph) > limit:
        paragraph = paragraph.strip()  # a cut behind leading blanks would leave an empty piece
    while len(paragraph) > limit:
        ends = [match.start() for match in _SENTENCE_END.finditer(paragraph, 0, limit)]
        cut = ends[-1] if ends and ends[-1] > limit // 4 else paragraph.rfind(" ", 1, limit)
        cut = limit if cut <= 0 else cut
        yield paragraph[:cut].rstrip()
        paragraph = paragraph[cut:].strip()
    if paragraph.strip():
        yield paragraph


def _docstrings(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=True)
            if docstring and docstring.strip():
                found.append((getattr(node, "lineno", 0), docstring))
    return [docstring for _, docstring in sorted(found, key=lambda item: item[0])]


def _topics(path: Path) -> dict[str, str]:
    """The literal dictionary of `pydoc_data/topics.py`, read without running it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return {name: inspect.cleandoc(text) for name, text in ast.literal_eval(node.value).items()}
    return {}


def _runs(words: list[str]) -> set[int]:
    """Hashes of all runs of eight words, or of all the words when there are fewer; the same in every process."""
    count = max(len(words) - _SHINGLE_WORDS + 1, 1)
    runs = (" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(count))
    return {int.from_bytes(hashlib.blake2b(run.encode("utf-8"), digest_size=8).digest(), "big") for run in runs}
