"""What a scene is made of, and which scenes belong to which split."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmalign.data.sources.base import hashed_split

Item = TypeVar("Item")

# An object's sound is its own: the timbre belongs to the shape, the pitch to the colour, the duration to the size. So
# each of picture, sound and caption tells the same things, and what is aligned by way of the caption can be checked.
TIMBRES = {
    "circle": "flute",
    "square": "clarinet",
    "triangle": "chime",
    "star": "tremolo",
    "heart": "strings",
    "cross": "buzz",
    "diamond": "marimba",
    "crescent": "slide",
}
# A chord of C major over two and a half octaves: any mixture sounds pleasant, and neighbours are far enough apart.
PITCHES_HZ = {
    "red": 261.63,
    "orange": 329.63,
    "yellow": 392.00,
    "green": 523.25,
    "turquoise": 659.26,
    "blue": 783.99,
    "purple": 1046.50,
    "pink": 1318.51,
}
DURATIONS_SECONDS = {"small": (0.24, 0.32), "big": (0.48, 0.56)}
PLACES = {
    "top left": (0, 0),
    "top": (1, 0),
    "top right": (2, 0),
    "left": (0, 1),
    "centre": (1, 1),
    "right": (2, 1),
    "bottom left": (0, 2),
    "bottom": (1, 2),
    "bottom right": (2, 2),
}
SHAPES, COLOURS, SIZES = tuple(TIMBRES), tuple(PITCHES_HZ), tuple(DURATIONS_SECONDS)
OBJECT_COUNT_SHARES = {1: 0.15, 2: 0.35, 3: 0.5}

# Two shapes of every colour, two colours of every shape: each of them alone still occurs in training.
HELD_OUT = frozenset(
    (COLOURS[i], SHAPES[(multiplier * i + offset) % len(SHAPES)])
    for i in range(len(COLOURS))
    for multiplier, offset in ((3, 2), (5, 5))
)
_ORDINARY = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT]
_COMPOSITIONAL = sorted(HELD_OUT)
_CONTENT_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclass(frozen=True)
class Thing:
    """One object of a scene, as far as words can tell it."""

    colour: str
    shape: str
    size: str
    place: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape} {self.place}"


Content = tuple[Thing, ...]
"""The objects of a scene in the order of their sounds."""


def group_of(content: Content) -> str:
    """A name of the content: scenes with the same one cannot be told apart by any true caption."""
    return " > ".join(map(str, content))


def draw_contents(split: str, count: int, seed: int) -> list[Content]:
    """The contents of a split: none of them occurs in another split, whatever the seeds.

    Outside training a content is repeated only when the small ones (one object) run out.
    """
    rng = random.Random(f"scenes/{seed}/{split}")
    contents: list[Content] = []
    used: set[Content] = set()
    while len(contents) < count:
        for _ in range(50):
            content = _draw(rng, split)
            if split == "train" or content not in used:
                break
        used.add(content)
        contents.append(content)
    return contents


def _draw(rng: random.Random, split: str) -> Content:
    combinations = _COMPOSITIONAL if split == "test_compositional" else _ORDINARY
    while True:
        content = _compose(rng, combinations)
        if split == "test_compositional" or hashed_split(group_of(content), _CONTENT_SHARES) == split:
            return content


def _compose(rng: random.Random, combinations: list[tuple[str, str]]) -> Content:
    # Only `random()` itself is promised to stay the same over Python versions; everything is derived from it.
    point, objects = rng.random(), max(OBJECT_COUNT_SHARES)
    for number, share in OBJECT_COUNT_SHARES.items():
        if point < share:
            objects = number
            break
        point -= share
    looks = pick(rng, combinations, objects)
    places = pick(rng, list(PLACES), objects)
    return tuple(
        Thing(colour, shape, SIZES[int(rng.random() * len(SIZES))], place)
        for (colour, shape), place in zip(looks, places, strict=True)
    )


def pick(rng: random.Random, items: Sequence[Item], count: int) -> list[Item]:
    """`count` different items in random order."""
    left = list(items)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]
