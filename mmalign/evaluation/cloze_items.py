"""Facts that a small language model may know, as sentences with one right ending and three wrong ones."""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

_CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, England London, Ireland Dublin, "
    "Austria Vienna, Greece Athens, Poland Warsaw, Russia Moscow, Japan Tokyo, China Beijing, Egypt Cairo, "
    "Cuba Havana, Peru Lima, Kenya Nairobi, Norway Oslo, Sweden Stockholm, Denmark Copenhagen, Finland Helsinki, "
    "Hungary Budapest, Romania Bucharest, Bulgaria Sofia, Turkey Ankara, Iran Tehran, Iraq Baghdad, Canada Ottawa, "
    "Chile Santiago, Thailand Bangkok, Belgium Brussels, Ukraine Kyiv, Lebanon Beirut, Syria Damascus, Vietnam Hanoi"
)
_COLOURS = (
    "grass green, snow white, coal black, blood red, milk white, butter yellow, chocolate brown, a ripe tomato red, "
    "a lemon yellow, a carrot orange, a raven black, a ripe strawberry red, soot black, a polar bear white, "
    "a flamingo pink, a ripe banana yellow, a swan white, an emerald green, a ruby red, a sapphire blue, "
    "a canary yellow, a clear sky blue, salt white, spinach green, tar black, a ripe pumpkin orange, "
    "a coffee bean brown"
)
_OPPOSITES = (
    "hot cold, big small, up down, day night, good bad, fast slow, old young, happy sad, rich poor, light dark, "
    "open closed, early late, hard soft, long short, high low, wet dry, left right, full empty, strong weak, near far, "
    "thick thin, loud quiet, first last, clean dirty, right wrong, inside outside, black white, war peace, love hate, "
    "true false, always never, more less, before after, push pull, win lose, buy sell"
)
_YOUNG = (
    "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, pig piglet, bear cub, lion cub, hen chick, "
    "duck duckling, goose gosling, deer fawn, frog tadpole, swan cygnet, kangaroo joey, butterfly caterpillar"
)
_SOUNDS = (
    "dog barks, cat meows, cow moos, horse neighs, sheep bleats, lion roars, wolf howls, duck quacks, bee buzzes, "
    "snake hisses, frog croaks, owl hoots, mouse squeaks, pig oinks, donkey brays, rooster crows"
)
_KINDS = (
    "a rose flower, an oak tree, a trout fish, a sparrow bird, an apple fruit, a hammer tool, a violin instrument, "
    "gold metal, a shirt garment, a car vehicle, football sport, French language, red colour, an ant insect, "
    "a carrot vegetable, a tulip flower, a pine tree, a salmon fish, an eagle bird, a pear fruit, a saw tool, "
    "a trumpet instrument, iron metal, a coat garment, a bus vehicle, tennis sport, Spanish language, blue colour, "
    "a beetle insect, a cabbage vegetable, chess game, wheat grain, a table furniture"
)
_USES = (
    "drive in a nail hammer, see far things telescope, tell the time clock, sweep the floor broom, "
    "unlock a door key, dig a hole shovel, boil water kettle, write on paper pen, take a picture camera, "
    "measure heat thermometer, climb onto a roof ladder, sew a button needle, "
    "comb your hair comb, see tiny things microscope, find north compass, light a room lamp"
)
_NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_MONTHS = "January February March April May June July August September October November December"
_LETTERS = "A B C D E F G H I J K L M N O P Q R S T"


@dataclass(frozen=True)
class ClozeItem:
    """`prompt` + `ending` + "." is a sentence; the first of the four endings is the right one."""

    table: str
    prompt: str
    endings: tuple[str, str, str, str]

    @property
    def sentences(self) -> list[str]:
        return [f"{self.prompt} {ending}." for ending in self.endings]


def cloze_items() -> list[ClozeItem]:
    """All items, always the same. Wrong endings are right ones of other items of the same table."""
    tables = {
        "capitals": [(f"The capital of {x} is", y) for x, y in _pairs(_CAPITALS)],
        "colours": [(f"The colour of {x} is", y) for x, y in _pairs(_COLOURS)],
        "opposites": [(f"The opposite of {x} is", y) for x, y in _pairs(_OPPOSITES)],
        "young": [(f"A young {x} is called a", y) for x, y in _pairs(_YOUNG)],
        "sounds": [(f"The {x}", y) for x, y in _pairs(_SOUNDS)],
        "kinds": [(f"{x[0].upper()}{x[1:]} is a kind of", y) for x, y in _pairs(_KINDS)],
        "uses": [(f"To {x} you need a", y) for x, y in _pairs(_USES)],
        "counting": [(f"The number after {x} is", y) for x, y in pairwise(_NUMBERS.split())],
        "days": [(f"The day after {x} is", y) for x, y in pairwise(f"{_DAYS} Monday".split())],
        "days_before": [(f"The day before {y} is", x) for x, y in pairwise(_DAYS.split())],
        "months": [(f"The month after {x} is", y) for x, y in pairwise(f"{_MONTHS} January".split())],
        "letters": [(f"The letter after {x} is", y) for x, y in pairwise(_LETTERS.split())],
    }
    return [
        ClozeItem(name, prompt, (right, *_wrong(prompt, right, sorted({answer for _, answer in table}))))
        for name, table in tables.items()
        for prompt, right in table
    ]


def _pairs(table: str) -> list[tuple[str, str]]:
    split = [entry.rpartition(" ") for entry in table.split(", ")]
    return [(question, answer) for question, _, answer in split]


def _wrong(prompt: str, right: str, answers: list[str]) -> tuple[str, str, str]:
    """Three other answers, by a hash of prompt and answer: the same on every machine."""
    others = [answer for answer in answers if answer != right]
    others.sort(key=lambda answer: hashlib.sha256(f"{prompt} {answer}".encode()).digest())
    return others[0], others[1], others[2]
