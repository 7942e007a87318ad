"""Invented names, dates and numbers for the demo world.

Both parts of the world, `train` and `test`, combine the same words into names. The hash of a whole
name decides its part, so that no test name occurs in training. What a model learns about one name
is no help with another.
"""

import random
from collections.abc import Callable, Sequence
from typing import Literal
from zlib import crc32

Part = Literal["train", "test"]

_STARTS = """
al am an ar as bal bar bel ber bir bor bran bren bro cal car ced cor cul dal dar del der dor dra
dun el em er es fal far fen fin fol gal gar gel gor gra gwen hal har hel hol hor il im in is jan
jar jor kal kar kel ker kor lan lar lem lin lor lum mal mar mel mer mir mor nal nar nel nor ol or
os pal par pel per pol quil ral ran rel rin ros sal san sel sil sor tal tar tel thal thor tin tol
tor tul ul um ur val var vel ver vin vol wal war wen wil yar yel yor zal zan zel zor
""".split()
_HER_ENDINGS = "a ia ine elle wyn ara ise eth ila ona ette una".split()
_HIS_ENDINGS = "o ric us ald and ek an ard mon vin or as".split()
_FAMILY_ENDINGS = "ven ser dahl lund mark ner rick stone vale wood man ski sen ley kov tin".split()
_PLACE_ENDINGS = """
ton wick mere holm by stead gate ford burg haven dale mouth field minster bridge cliff port moor
""".split()
_RIVER_ENDINGS = "ane ith esk una ow ess ire elle urn ava".split()

_ADJECTIVES = """
Amber Ancient Bitter Bright Broken Crimson Distant Early Empty Faithful Frozen Gentle Golden Grey
Hidden Hollow Lonely Lucky Merry Northern Patient Proud Quiet Restless Royal Scarlet Silent Silver
Sleeping Southern Stormy Swift Wandering White Wild
""".split()
_NOUNS = """
Anchor Arrow Badger Candle Comet Crane Crown Dolphin Eagle Falcon Feather Flame Forest Fox Garden
Gull Harbour Harp Heron Lantern Lily Lion Meadow Mirror Moon Mountain Orchard Otter Owl Pearl
Raven River Rose Salmon Shepherd Sparrow Star Swallow Thistle Tiger Tower Traveller Valley Wave
Whale Willow Window Winter Wolf
""".split()
_MONTHS = """
January February March April May June July August September October November December
""".split()
_PREFIXES = """
New Old Upper Lower Port Saint Great Little North South East West Fort Mount Castle Lake
""".split()
_COLOURS = "White Black Red Green Blue Grey Silver Golden Brown Clear Long Wide".split()


def _invent(endings: Sequence[str], count: int) -> list[str]:
    """Return the same `count` words at every call, each of a start and an ending."""
    words = {(start + ending).capitalize() for start in _STARTS for ending in endings}
    return sorted(words, key=lambda word: crc32(word.encode()))[:count]


_BUILDINGS = ("Bridge", "Tower", "Mill", "Library", "Gate", "Hall", "Theatre")
_SOCIETIES = ("Society", "Company", "Guild", "Order", "Academy", "League", "Club")
_FIRST_YEAR, _LAST_YEAR = 1400, 1899
_SHORTEST_LIFE, _LONGEST_LIFE = 25, 90
# After this many failed draws, nothing new is assumed to be left.
_TRIES = 1000
_COMMON = frozenset((*_PREFIXES, *_COLOURS, *_BUILDINGS, *_SOCIETIES))
_HER_NAMES = _invent(_HER_ENDINGS, 60)
_HIS_NAMES = _invent(_HIS_ENDINGS, 60)
_FAMILIES = _invent(_FAMILY_ENDINGS, 200)
_TOWNS = _invent(_PLACE_ENDINGS, 150)
_RIVERS = _invent(_RIVER_ENDINGS, 60)


def part_of(name: str) -> Part:
    """Return the part of the world to which an invented name (a word or a title) belongs."""
    return "test" if crc32(name.lower().encode()) % 5 == 0 else "train"


class Source:
    """Draws names and values for one text, without repeating a value or a word of a name."""

    def __init__(self, rng: random.Random, part: Part) -> None:
        self.rng = rng
        self.part = part
        self._drawn: set[str] = set()
        self._born: int

    def choice(self, options: Sequence[str]) -> str:
        """Draw one of `options` that this text has not used yet."""
        return self._new(lambda: self.rng.choice(options))

    def woman(self) -> str:
        """Draw a woman's full name."""
        return self._named("{} {}", _HER_NAMES, _FAMILIES)

    def man(self) -> str:
        """Draw a man's full name."""
        return self._named("{} {}", _HIS_NAMES, _FAMILIES)

    def person(self) -> str:
        """Draw the full name of a woman or a man."""
        return self.woman() if self.rng.random() < 0.5 else self.man()

    def place(self) -> str:
        """Draw the name of a town."""
        return self._named("{} {}", _PREFIXES, _TOWNS)

    def river(self) -> str:
        """Draw the name of a river, without article."""
        return self._named("{} {}", _COLOURS, _RIVERS)

    def ship(self) -> str:
        """Draw the name of a ship, with article."""
        return "the " + self._named("{} {}", _ADJECTIVES, _NOUNS)

    def work(self) -> str:
        """Draw the title of a book or picture."""
        title = self.rng.choice(("The {} and the {}", "Song of the {} {}", "The {} of the {}"))
        return self._named(title, _NOUNS, _NOUNS)

    def building(self) -> str:
        """Draw the name of a building, with article."""
        return "the " + self._named("{} {}", _FAMILIES, _BUILDINGS)

    def society(self) -> str:
        """Draw the name of a society, with article."""
        return "the " + self._named("{} {}", _FAMILIES, _SOCIETIES)

    def year(self, first: int = _FIRST_YEAR, last: int = _LAST_YEAR) -> str:
        """Draw a year of the world's history."""
        return self._new(lambda: str(self.rng.randint(first, last)))

    def birth_year(self) -> str:
        """Draw a year of birth that leaves time for the longest life."""
        year = self.year(last=_LAST_YEAR - _LONGEST_LIFE)
        self._born = int(year)
        return year

    def death_year(self) -> str:
        """Draw a year of death for the last drawn `birth_year`."""
        return self.year(self._born + _SHORTEST_LIFE, self._born + _LONGEST_LIFE)

    def date(self) -> str:
        """Draw a day, month and year."""
        return self._new(lambda: f"{self.rng.randint(1, 28)} {self._pick(_MONTHS)} ") + self.year()

    def count(self, low: int, high: int) -> str:
        """Draw an integer from `low` to `high`, with a comma for thousands."""
        return self._new(lambda: f"{self.rng.randint(low, high):,}")

    def _pick(self, options: Sequence[str]) -> str:
        return self.rng.choice(options)

    def _new(self, draw: Callable[[], str]) -> str:
        for _ in range(_TRIES):
            if (value := draw()) not in self._drawn:
                self._drawn.add(value)
                return value
        raise LookupError("This text has used all options; draw fewer values for it.")

    def _named(self, form: str, firsts: Sequence[str], seconds: Sequence[str]) -> str:
        """Draw a name of this part, of two words that no other name in this text has."""
        while True:
            words = self.rng.choice(firsts), self.rng.choice(seconds)
            name = form.format(*words)
            if (
                part_of(name) == self.part
                and words[0] != words[1]
                and self._drawn.isdisjoint(words)
            ):
                # Common words such as prefixes and colours may repeat; distinctive words may not.
                self._drawn.update(word for word in words if word not in _COMMON)
                return name
