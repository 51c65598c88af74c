"""Grammatical minimal pairs: two sentences that differ in what makes one of them English and the other not.

Five phenomena after the kinds of BLiMP (Warstadt et al. 2020), generated here. Every pair is balanced, so that knowing
the frequencies of words does not help: either both members have the same words in another order, or for every pair
there is one in which the two words change their parts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

PAIRS_PER_PHENOMENON = 240

_NOUNS = [
    ("dog", "dogs"),
    ("girl", "girls"),
    ("teacher", "teachers"),
    ("bird", "birds"),
    ("doctor", "doctors"),
    ("king", "kings"),
    ("horse", "horses"),
    ("friend", "friends"),
]
_THINGS = [("tree", "trees"), ("house", "houses"), ("table", "tables"), ("river", "rivers"), ("door", "doors")]
_STATES = ["tired", "happy", "late", "here", "young"]
_WOMEN = [("woman", "women"), ("queen", "queens"), ("mother", "mothers"), ("sister", "sisters"), ("aunt", "aunts")]
_MEN = [("man", "men"), ("king", "kings"), ("father", "fathers"), ("brother", "brothers"), ("uncle", "uncles")]
_REFLECTED = ["saw", "hurt", "washed", "helped", "described", "hated"]
_ACTIONS = ["saw", "found", "liked", "followed", "painted", "carried"]
_ADJECTIVES = ["old", "small", "red", "heavy", "clean"]


@dataclass(frozen=True)
class MinimalPair:
    """A grammatical sentence and its ungrammatical twin."""

    phenomenon: str
    good: str
    bad: str


def minimal_pairs() -> list[MinimalPair]:
    """All pairs: 240 of each phenomenon, always the same, in an order that mixes nothing across phenomena."""
    pairs = []
    for name, generate in _PHENOMENA.items():
        # The smallest hashes are an even sample that does not depend on the version of a random generator. Pairs that
        # balance each other are one group: all are taken or none.
        groups = sorted(generate(), key=lambda group: hashlib.sha256(repr(group).encode()).digest())
        found = [pair for group in groups for pair in group]
        pairs += [MinimalPair(name, good, bad) for good, bad in found[:PAIRS_PER_PHENOMENON]]
    return pairs


Group = list[tuple[str, str]]


def _agreement() -> Iterator[Group]:
    """The verb agrees with its subject, not with the noun beside it."""
    for (one, many), (thing, things), state in product(_NOUNS, _THINGS, _STATES):
        for singular, plural in (("is", "are"), ("was", "were")):
            yield [
                (f"The {one} near the {things} {singular} {state}.", f"The {one} near the {things} {plural} {state}."),
                (
                    f"The {many} near the {things} {plural} {state}.",
                    f"The {many} near the {things} {singular} {state}.",
                ),
                (f"The {one} near the {thing} {singular} {state}.", f"The {one} near the {thing} {plural} {state}."),
                (f"The {many} near the {thing} {plural} {state}.", f"The {many} near the {thing} {singular} {state}."),
            ]


def _determiners() -> Iterator[Group]:
    """this and that go with one, these and those with several."""
    for (person, _), action, (thing, things) in product(_NOUNS, _ACTIONS, _THINGS):
        for singular, plural in (("this", "these"), ("that", "those")):
            start = f"The {person} {action}"
            yield [
                (f"{start} {singular} {thing}.", f"{start} {plural} {thing}."),
                (f"{start} {plural} {things}.", f"{start} {singular} {things}."),
            ]


def _reflexives() -> Iterator[Group]:
    """A reflexive has the gender and the number of its subject, not of the noun beside it."""
    for (woman, women), (man, _), action in product(_WOMEN, _MEN, _REFLECTED):
        she, he = f"The {woman} near the {man} {action}", f"The {man} near the {woman} {action}"
        they = f"The {women} near the {man} {action}"
        one = f"The {man} near the {women} {action}"
        yield [(f"{she} herself.", f"{she} himself."), (f"{he} himself.", f"{he} herself.")]
        yield [(f"{they} themselves.", f"{they} himself."), (f"{one} himself.", f"{one} themselves.")]


def _negative_polarity() -> Iterator[Group]:
    """ever and any need a negation above them, not merely before them."""
    for (one, _), (other, _), action in product(_NOUNS, _NOUNS, _ACTIONS):
        for tail in ("has ever slept", "has any money") if one != other else ():
            yield [(f"No {other} that the {one} {action} {tail}.", f"The {other} that no {one} {action} {tail}.")]


def _word_order() -> Iterator[Group]:
    """Article, adjective, noun, verb, in this order."""
    for (one, _), action, adjective, (thing, _) in product(_NOUNS, _ACTIONS, _ADJECTIVES, _THINGS):
        good = f"The {one} {action} the {adjective} {thing}."
        yield [(good, f"The {one} {action} the {thing} {adjective}.")]
        yield [(good, f"The {one} {action} {adjective} the {thing}.")]
        yield [(good, f"The {action} {one} the {adjective} {thing}.")]
        yield [(good, f"The {one} the {adjective} {thing} {action}.")]


_PHENOMENA = {
    "agreement": _agreement,
    "determiners": _determiners,
    "reflexives": _reflexives,
    "negative_polarity": _negative_polarity,
    "word_order": _word_order,
}
