"""The grammar of the scenes' captions: what, where, and in which order."""

import random

from mmalign.data.sources.scenes_content import Content, Thing, pick

PHRASINGS = 4
"""Captions of each scene, every one of another sentence form."""

_SIZE_WORDS = {"small": ("small", "little"), "big": ("big", "large")}
_PLACE_WORDS = {
    "top left": ("at the top left", "in the upper left corner"),
    "top": ("at the top", "at the upper edge"),
    "top right": ("at the top right", "in the upper right corner"),
    "left": ("on the left", "at the left edge"),
    "centre": ("in the centre", "in the middle"),
    "right": ("on the right", "at the right edge"),
    "bottom left": ("at the bottom left", "in the lower left corner"),
    "bottom": ("at the bottom", "at the lower edge"),
    "bottom right": ("at the bottom right", "in the lower right corner"),
}
_VERBS = {
    "circle": "whistles",
    "square": "hoots",
    "triangle": "chimes",
    "star": "trills",
    "heart": "sings",
    "cross": "buzzes",
    "diamond": "knocks",
    "crescent": "swoops",
}
# {0}, {1}, {2}: the objects by onset, as noun phrases with their places; {v0}, …: with the verb of their sounds.
_SENTENCES = {
    1: (
        "{0}",
        "there is {0}",
        "only {v0}",
        "you see and hear {0}",
        "{0}, alone",
    ),
    2: (
        "first {0}, then {1}",
        "{0} is followed by {1}",
        "{1} comes after {0}",
        "{v0} before {v1}",
        "it starts with {0} and ends with {1}",
    ),
    3: (
        "first {0}, then {1}, and last {2}",
        "{0} is followed by {1} and then by {2}",
        "{2} comes last, after {0} and then {1}",
        "{v0}, then {v1}, then {v2}",
        "it starts with {0}, goes on with {1} and ends with {2}",
    ),
}


def captions(content: Content, rng: random.Random) -> list[str]:
    """`PHRASINGS` different true captions."""
    return [_fill(sentence, content, rng) for sentence in pick(rng, _SENTENCES[len(content)], PHRASINGS)]


def _fill(sentence: str, content: Content, rng: random.Random) -> str:
    phrases = [_noun_phrase(thing, rng) for thing in content]
    verbs = {
        f"v{i}": f"{phrase} {_VERBS[thing.shape]}"
        for i, (phrase, thing) in enumerate(zip(phrases, content, strict=True))
    }
    return sentence.format(*phrases, **verbs)


def _noun_phrase(thing: Thing, rng: random.Random) -> str:
    size = pick(rng, _SIZE_WORDS[thing.size], 1)[0]
    place = pick(rng, _PLACE_WORDS[thing.place], 1)[0]
    return f"a {size} {thing.colour} {thing.shape} {place}"
