"""Docstrings: whole paragraphs, one side for each package, no repetition across splits."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.data.sources.text import Docstrings, pack, paragraphs_of

SHARED = "This very paragraph about nothing in particular stands in two packages and must not be in two splits."


@pytest.fixture
def library(tmp_path):
    """A standard library in small: forty packages, a test package, a template that is no Python, help topics."""
    for i in range(40):
        package = tmp_path / f"package{i}"
        package.mkdir()
        own = " ".join(f"word{i}x{j}" for j in range(30))
        (package / "__init__.py").write_text(f'"""Package {i}.\n\n    {own}\n\n{SHARED}\n"""\n')
        (package / "part.py").write_text(f'def f():\n    """Part {i} of the number {i * i}.\n\n    >>> f()\n    """\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "support.py").write_text('"""Never seen."""')
    (tmp_path / "template.py").write_text("def {{ name }}:")
    (tmp_path / "bare.py").write_text("x = 1")
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'if': 'The if statement.\\n\\nIt chooses.'}\n")
    return tmp_path


def test_one_side_for_each_package_and_each_paragraph(library):
    source = Docstrings(library, val_share=0.3, test_share=0.3)
    texts = {split: [s.members["txt"].decode() for s in source.samples(split)] for split in source.splits()}
    packages = {split: set(re.findall(r"Package (\d+)\.", "\n".join(part))) for split, part in texts.items()}
    parts = {split: set(re.findall(r"Part (\d+) ", "\n".join(part))) for split, part in texts.items()}
    assert parts == packages
    assert sum(map(len, packages.values())) == len(set().union(*packages.values())) == 40
    assert all(packages.values())
    everything = "\n".join(text for part in texts.values() for text in part)
    assert everything.count(SHARED) == 1
    assert SHARED in "\n".join(texts["test"])
    assert "The if statement." in everything
    assert "Never seen" not in everything
    assert ">>>" not in everything
    report = source.report()
    assert report["modules that cannot be parsed"] == report["modules without docstrings"] == 1
    assert report["paragraphs that are interpreter sessions"] == 40
    assert report["paragraphs near those of another split"] + report["paragraphs repeated within a split"] == 39


def test_near_duplicates_count_as_repetitions(tmp_path):
    words = [f"word{i}" for i in range(40)]
    for i in range(12):
        changed = [*words[:i], f"other{i}", *words[i + 1 :]]
        (tmp_path / f"m{i}.py").write_text(f'"""{" ".join(changed)}"""')
    source = Docstrings(tmp_path, val_share=0.3, test_share=0.3)
    found = {split: len(list(source.samples(split))) for split in source.splits()}
    assert sorted(found.values())[:2] == [0, 0]
    assert max(found.values()) >= 1


def test_same_text_whatever_was_drawn_before(library):
    first, second = Docstrings(library), Docstrings(library)
    train = list(first.samples("train"))
    list(second.samples("test"))
    assert list(second.samples("train")) == train == list(first.samples("train"))
    assert first.report() == second.report()
    assert first.provenance() == second.provenance()
    assert first.settings()["directory"] == library.name


def test_the_real_library_gives_text_for_language_ability():
    source = Docstrings()
    counts = {split: sum(len(s.members["txt"]) for s in source.samples(split)) for split in source.splits()}
    assert counts["train"] > 500_000
    assert min(counts["val"], counts["test"]) > 30_000
    sample = next(source.samples("val"))
    assert sample.metadata["language"] == "en"


@given(st.lists(st.text(alphabet="abc .\n", min_size=1).filter(str.strip)), st.integers(8, 60))
def test_passages_lose_no_word_and_keep_the_limit(paragraphs, limit):
    passages = pack(paragraphs, limit)
    assert all(0 < len(passage) <= limit for passage in passages)
    assert "".join("".join(passages).split()) == "".join("".join(paragraphs).split())


def test_paragraphs_are_only_cut_when_they_must():
    assert paragraphs_of("One.\n  \nTwo  \nlines.\n\n\n") == ["One.", "Two\nlines."]
    assert pack(["One.", "Two.", "Three is longer."], 16) == ["One.\n\nTwo.", "Three is longer."]
    assert pack(["A first sentence. A second one."], 20) == ["A first sentence.", "A second one."]


@pytest.mark.parametrize("settings", [{"passage_characters": 3}, {"val_share": 0.0}, {"test_share": 0.95}])
def test_refuses_impossible_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Docstrings(**settings)
