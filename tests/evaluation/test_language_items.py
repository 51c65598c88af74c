"""The generated tests of language: how many, how balanced, and always the same."""

import hashlib
from collections import Counter

from mmalign.evaluation.cloze_items import cloze_items
from mmalign.evaluation.minimal_pairs import minimal_pairs


def test_there_are_enough_pairs_of_each_phenomenon_and_none_twice() -> None:
    pairs = minimal_pairs()
    assert Counter(pair.phenomenon for pair in pairs) == {
        "agreement": 240,
        "determiners": 240,
        "reflexives": 240,
        "negative_polarity": 240,
        "word_order": 240,
    }
    assert len({(pair.good, pair.bad) for pair in pairs}) == len(pairs)
    good, bad = {pair.good for pair in pairs}, {pair.bad for pair in pairs}
    assert not good & bad


def test_word_frequencies_say_nothing() -> None:
    """A model of single words prefers the good member of exactly half of the pairs that differ in their words."""
    pairs = minimal_pairs()
    for phenomenon in {pair.phenomenon for pair in pairs}:
        some = [pair for pair in pairs if pair.phenomenon == phenomenon]
        good = Counter(word for pair in some for word in pair.good.lower().strip(".").split())
        bad = Counter(word for pair in some for word in pair.bad.lower().strip(".").split())
        assert good == bad, phenomenon


def test_cloze_items_are_many_and_have_one_right_ending() -> None:
    items = cloze_items()
    assert len(items) >= 200
    assert len({item.prompt for item in items}) == len(items)
    for item in items:
        assert len(set(item.endings)) == 4, item
        assert item.sentences[0] == f"{item.prompt} {item.endings[0]}."


def test_the_items_are_those_that_published_numbers_were_measured_on() -> None:
    """Changing them changes every figure: then the figures must be measured anew, and these hashes with them."""
    pairs = "\n".join(f"{pair.good}\t{pair.bad}" for pair in minimal_pairs())
    items = "\n".join("\t".join(item.sentences) for item in cloze_items())
    assert hashlib.sha256(pairs.encode()).hexdigest()[:16] == "fa19abe1e8993939"
    assert hashlib.sha256(items.encode()).hexdigest()[:16] == "2e376bbf7e50bdd1"
