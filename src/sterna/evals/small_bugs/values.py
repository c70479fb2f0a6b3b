"""Typed sample inputs for generated tests: short values, so that a failing assertion stays one short line."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

WORDS = (
    "apple", "bear", "blue", "book", "cat", "cold", "corn", "day", "dog", "door", "fish", "fox", "game", "gold", "green",
    "hat", "home", "ice", "jam", "key", "kite", "lake", "leaf", "lion", "milk", "moon", "night", "note", "owl", "pear",
    "pen", "rain", "red", "ring", "road", "rose", "salt", "sand", "sea", "ship", "sky", "snow", "star", "sun", "tea",
    "tree", "wind", "wolf", "wood", "year", "level", "noon", "radar",
)  # fmt: skip
NAMES = ("Ann", "Bob", "Eve", "Ian", "Kim", "Lee", "Max", "Mia", "Sam", "Tom")
PHRASES = (
    "the red fox",
    "a big dog",
    "Blue Sky",
    "one two one",
    "cold  tea",
    "To be or not",
    "go up go",
    "Hello World",
)


def word(rng: Random) -> str:
    """One common lower-case word."""
    return rng.choice(WORDS)


def _mixed(rng: Random) -> str:
    text = word(rng)
    return rng.choice((text, text.title(), text.upper(), text + str(rng.randrange(10))))


def _text(rng: Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(PHRASES)
    return " ".join(rng.choice((word(rng), word(rng), word(rng).title())) for _ in range(rng.randint(2, 3)))


def _ints(rng: Random, *, low: int = 1, high: int = 9, least: int = 3, most: int = 5) -> list[int]:
    return [rng.randint(low, high) for _ in range(rng.randint(least, most))]


def _mapping(rng: Random) -> dict[str, int]:
    return {name: rng.randint(1, 9) for name in rng.sample(WORDS, rng.randint(2, 3))}


def _pairs(rng: Random) -> list[tuple[str, int]]:
    pool = rng.sample(WORDS, 2)
    return [(rng.choice(pool), rng.randint(1, 9)) for _ in range(3)]


def _matrix(rng: Random) -> list[list[int]]:
    rows, columns = rng.randint(2, 3), rng.randint(2, 3)
    return [[rng.randint(0, 9) for _ in range(columns)] for _ in range(rows)]


def _nested(rng: Random) -> list[list[int]]:
    return [[rng.randint(1, 9) for _ in range(rng.randint(0, 2))] for _ in range(3)]


def _intervals(rng: Random) -> list[tuple[int, int]]:
    starts = [rng.randint(0, 12) for _ in range(3)]
    return [(start, start + rng.randint(1, 5)) for start in starts]


def _maybe(rng: Random) -> list[int | None]:
    return [rng.choice((None, rng.randint(1, 9), rng.randint(1, 9))) for _ in range(4)]


def _orders(rng: Random) -> list[dict[str, int]]:
    return [{"price": rng.randint(1, 9), "count": rng.randint(1, 4)} for _ in range(rng.randint(1, 2))]


def _people(rng: Random) -> list[dict[str, str | int]]:
    return [{"name": name, "age": rng.randint(15, 21)} for name in rng.sample(NAMES, 2)]


def _square(rng: Random) -> list[list[int]]:
    size = rng.randint(2, 3)
    return [[rng.randint(0, 9) for _ in range(size)] for _ in range(size)]


TYPES: dict[str, Callable[[Random], Any]] = {
    "int": lambda rng: rng.randint(-5, 12),
    "nat": lambda rng: rng.randint(0, 15),
    "pos": lambda rng: rng.randint(1, 12),
    "small": lambda rng: rng.randint(1, 3),
    "big": lambda rng: rng.randint(20, 400),
    "half": lambda rng: rng.randint(1, 20) / 2,
    "bool": lambda rng: rng.random() < 0.5,
    "ints": _ints,
    "signed": lambda rng: _ints(rng, low=-5),
    "dups": lambda rng: _ints(rng, high=3, least=4),
    "sorted": lambda rng: sorted(rng.sample(range(1, 20), rng.randint(3, 5))),
    "sorted2": lambda rng: sorted(rng.sample(range(1, 12), rng.randint(2, 3))),
    "bits": lambda rng: [rng.randint(0, 1) for _ in range(rng.randint(3, 5))],
    "word": word,
    "mixed": _mixed,
    "char": lambda rng: rng.choice("abeno"),
    "name": lambda rng: rng.choice(NAMES),
    "words": lambda rng: [word(rng) for _ in range(rng.randint(2, 4))],
    "text": _text,
    "digits": lambda rng: "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 4))),
    "binary": lambda rng: "1" + "".join(rng.choice("01") for _ in range(rng.randint(1, 4))),
    "runs": lambda rng: "".join(rng.choice("abc") * rng.randint(1, 3) for _ in range(rng.randint(1, 3))),
    "brackets": lambda rng: rng.choice(("()", "(())", "(()", "())(", "()()", ")(", "a(b)c", "((a))")),
    "dict": _mapping,
    "basket": lambda rng: {name: rng.randint(1, 4) for name in rng.sample(("tea", "jam", "milk", "salt"), 2)},
    "prices": lambda rng: {name: rng.randint(2, 9) for name in rng.sample(("tea", "jam", "milk"), 2)},
    "pairs": _pairs,
    "matrix": _matrix,
    "square": _square,
    "square1": lambda rng: [[rng.randint(0, 9) for _ in range(2)] for _ in range(2)],
    "in01": lambda rng: rng.randint(0, 1),
    "orders": _orders,
    "people": _people,
    "nested": _nested,
    "intervals": _intervals,
    "maybe": _maybe,
}


def sample(kind: str, rng: Random) -> Any:
    """A value of ``kind``: a key of ``TYPES``, ``int:LOW:HIGH`` or ``in:A,B,C`` (words to choose from)."""
    if kind.startswith("int:"):
        _, low, high = kind.split(":")
        return rng.randint(int(low), int(high))
    if kind.startswith("in:"):
        return rng.choice(kind[3:].split(","))
    return TYPES[kind](rng)
