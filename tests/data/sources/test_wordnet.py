"""Example sentences of WordNet: parsed, without repetitions, one side for each meaning."""

import re

import pytest

from mmalign.data.sources.wordnet import WordNet
from mmalign.evaluation.texts import held_out_sentences

HEADER = "  1 This software and database is being provided to you\n"


@pytest.fixture
def folder(tmp_path):
    """A dictionary in small: two hundred meanings of a noun, one verb with a quotation, an adjective of two words."""
    nouns = [
        f'{i:08} 03 n 01 thing{i} 0 000 | number {i}; "the thing was number {i}"; "here is thing {i}"  \n'
        for i in range(200)
    ]
    (tmp_path / "data.noun").write_text(HEADER + "".join(nouns))
    (tmp_path / "data.verb").write_text(
        HEADER + '00000007 29 v 01 go 0 000 | move; a "quoted  word" of two; "Let us go then, you and I"- T.S.Eliot  \n'
    )
    (tmp_path / "data.adj").write_text(HEADER + '00000009 00 a 01 red 0 000 | coloured; "THE THING, was number 3!"\n')
    (tmp_path / "data.adv").write_text(HEADER)
    return tmp_path


def test_every_example_once_and_one_side_for_each_meaning(folder):
    source = WordNet(folder, val_share=0.3, test_share=0.3)
    texts = {split: [s.members["txt"].decode() for s in source.samples(split)] for split in source.splits()}
    everything = [text for part in texts.values() for text in part]
    assert len(everything) == len({text.lower() for text in everything}) == 401
    assert "Let us go then, you and I" in everything
    assert all(len(part) > 50 for part in texts.values())
    sides = [{re.sub(r"\D", "", text) for text in part if "thing" in text} for part in texts.values()]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 200
    assert source.report() == {"examples of fewer than 4 words": 1, "examples repeated": 1}
    assert next(source.samples("train")).metadata["language"] == "en"


def test_another_folder_another_hash_and_a_missing_file_by_name(folder):
    first = WordNet(folder).provenance()
    (folder / "data.adv").write_text(HEADER + HEADER)
    assert WordNet(folder).provenance() != first
    (folder / "data.adv").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.adv"):
        list(WordNet(folder).samples("train"))


@pytest.mark.parametrize("settings", [{"min_words": 0}, {"val_share": 0.0}, {"test_share": 1.0}])
def test_settings_without_sense_are_refused(folder, settings):
    with pytest.raises(ValueError, match=r"min_words|val_share"):
        WordNet(folder, **settings)


@pytest.mark.assets
def test_the_real_sentences_are_many_and_none_is_measured():
    source = WordNet()
    texts = [s.members["txt"].decode() for split in source.splits() for s in source.samples(split)]
    assert len(texts) > 35_000

    def words(text):
        return " ".join(re.findall(r"\w+", text.lower()))

    assert not {words(text) for text in texts} & {words(text) for text in held_out_sentences()}
