"""Renaming of generated code: every canonical name of the family files has a pool of everyday synonyms."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Mapping
from random import Random

SYNONYMS: dict[str, tuple[str, ...]] = {
    "items": ("items", "values", "numbers", "data", "nums"),
    "text": ("text", "s", "string", "line"),
    "words": ("words", "names", "parts", "tokens"),
    "word": ("word", "name", "part", "token"),
    "x": ("x", "item", "value", "v"),
    "n": ("n", "number", "num"),
    "k": ("k", "size", "step", "width"),
    "total": ("total", "acc", "sum_"),
    "result": ("result", "out", "res", "found"),
    "count": ("count", "c", "hits"),
    "ch": ("ch", "char", "letter"),
    "i": ("i", "index", "pos"),
    "best": ("best", "top", "current"),
    "table": ("table", "mapping", "d", "lookup"),
    "key": ("key", "name", "label"),
    "rows": ("rows", "grid", "matrix", "table"),
    "row": ("row", "r"),
    "first": ("first", "a", "left"),
    "second": ("second", "b", "right"),
    "low": ("low", "start", "lower"),
    "high": ("high", "end", "upper"),
    "limit": ("limit", "bound", "threshold"),
    "seen": ("seen", "known", "visited"),
    "amount": ("amount", "value", "quantity"),
    "target": ("target", "wanted", "goal"),
    "rate": ("rate", "percent", "factor"),
    "pairs": ("pairs", "entries", "records"),
    "left": ("left", "lo", "i"),
    "right": ("right", "hi", "j"),
    "prev": ("prev", "last", "before"),
}

MODULES = (
    "tools", "helpers", "utils", "calc", "core", "basics", "lib", "funcs", "common", "shapes", "mathx", "textx", "listx",
    "work", "stats", "extras", "logic", "parts", "units", "simple",
)  # fmt: skip

MEANINGLESS = (
    "apple", "arm", "base", "bean", "bird", "blue", "boat", "bone", "book", "box", "cake", "card", "cell", "chain", "city",
    "cloud", "coin", "cold", "corn", "crab", "dark", "deep", "desk", "door", "drop", "dust", "east", "edge", "face", "farm",
    "fast", "file", "fire", "fish", "flag", "flow", "fog", "food", "frog", "game", "gate", "gold", "grass", "gray", "green",
    "hand", "hat", "head", "hill", "home", "ice", "ink", "iron", "jam", "jar", "king", "kite", "lake", "lamp", "land",
    "leaf", "lemon", "lion", "lock", "log", "loop", "mask", "milk", "mine", "mint", "moon", "mud", "nail", "nest",
    "net", "node", "north", "nut", "oak", "oil", "page", "path", "peak", "pen", "pine", "pipe", "plan", "pool", "port",
    "queue", "rain", "red", "reef", "ring", "road", "rock", "room", "root", "rope", "rose", "rust", "salt", "sand", "sea",
    "seed", "shell", "ship", "silk", "sky", "snow", "soil", "song", "spot", "star", "stem", "stone", "sun", "tail", "tank",
    "tea", "tide", "tile", "time", "tin", "toy", "track", "tree", "tube", "turn", "vase", "wall", "wave", "west", "wheel",
    "wind", "wing", "wire", "wolf", "wood", "wool", "yard", "year", "zone",
)  # fmt: skip


def fresh_name(rng: Random) -> str:
    """A name that says nothing about what it holds: whoever edits the code must copy it."""
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(MEANINGLESS)
    if draw < 0.8:
        return f"{rng.choice(MEANINGLESS)}_{rng.choice(MEANINGLESS)}"
    return rng.choice("abcdefghmpqrstuvwxyz") + rng.choice(("", "0", "1", "2", "a", "b", "x"))


def rename(source: str, mapping: Mapping[str, str]) -> str:
    """``source`` with whole words replaced; a name after a dot (a method) or before ``=`` (a keyword) stays."""
    if not mapping:
        return source
    pattern = (
        r"(?<![\w.'\"])(" + "|".join(sorted(map(re.escape, mapping), key=len, reverse=True)) + r")(?![\w'\"]|=[^=])"
    )
    return re.sub(pattern, lambda match: mapping[match[1]], source)


def choose_names(source: str, rng: Random, *, fixed: Collection[str] = (), fresh: float = 0.0) -> dict[str, str]:
    """A synonym for every canonical name that ``source`` uses but ``fixed``, without two names becoming the same.

    ``fresh``: the share of names that become a word without a meaning instead.
    """
    present = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", source))
    taken = set(present)
    chosen: dict[str, str] = {}
    for name in sorted((present & SYNONYMS.keys()) - set(fixed)):
        pool = [other for other in SYNONYMS[name] if other == name or other not in taken]
        picked = pool[0] if rng.random() < 0.35 else rng.choice(pool)
        if fresh and rng.random() < fresh:
            other = fresh_name(rng)
            picked = picked if other in taken or keyword.iskeyword(other) else other
        taken.add(picked)
        if picked != name:
            chosen[name] = picked
    return chosen
