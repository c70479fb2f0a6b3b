"""Function families: text blocks with one specification, several implementations and typed test inputs.

A block of ``data/families/*.txt``::

    ### clamp: clamp limit bound | int int:0:4 int:6:9 | (5, 0, 9) (-3, 0, 5)
    Keep a value between two limits.
    def f(value, low, high):
        ...
    ---
    def f(value, low, high):       another implementation of the same function
        ...

Header: family name, function names to choose from, the types of the arguments (``values.TYPES``), edge cases that are
always among the test inputs. ``word=a/b`` among the names is one more renaming. ``K`` in the code and in the edge cases
is a constant from 2 to 6, ``L`` one from 10 to 30. For a class the types are ``class`` and the edge cases are left out;
scripts of statements follow after ``===``, where ``?`` marks an expression whose value is asserted and ``A``, ``B``,
``D`` are small numbers, ``W``, ``X`` words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

TRAINING_FILES = ("numbers", "lists", "strings", "mappings", "classes", "more")
HELD_OUT_FILES = ("held_out",)


@dataclass(frozen=True, slots=True)
class Family:
    """One specification. ``bodies`` define ``f`` (a function) or ``C`` (a class); ``scripts`` are for classes only."""

    name: str
    names: tuple[str, ...]
    renames: tuple[tuple[str, tuple[str, ...]], ...]
    types: tuple[str, ...]
    edges: tuple[str, ...]
    doc: str
    bodies: tuple[str, ...]
    scripts: tuple[tuple[str, ...], ...] = ()

    @property
    def is_class(self) -> bool:
        """Whether the family is a class."""
        return self.types == ("class",)


def _split_edges(text: str) -> tuple[str, ...]:
    edges, depth, start = [], 0, 0
    for position, char in enumerate(text):
        if char == "(":
            if depth == 0:
                start = position
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                edges.append(text[start : position + 1])
    return tuple(edges)


def parse_block(block: str) -> Family:
    """The family that one block (without its ``###``) describes."""
    header, doc, rest = block.strip("\n").split("\n", 2)
    name, header_rest = header.split(":", 1)
    fields = [part.strip() for part in re.split(r" \| ?", header_rest)]
    words = fields[0].split()
    rest, _, scripts = rest.partition("\n===\n")
    return Family(
        name=name.strip(),
        names=tuple(word for word in words if "=" not in word),
        renames=tuple((word.split("=")[0], tuple(word.split("=")[1].split("/"))) for word in words if "=" in word),
        types=tuple(fields[1].split()) if len(fields) > 1 else (),
        edges=_split_edges(fields[2]) if len(fields) > 2 else (),
        doc=doc.strip(),
        bodies=tuple(body.strip("\n") for body in rest.split("\n---\n")),
        scripts=tuple(tuple(line.split("; ")) for line in scripts.strip().split("\n") if line),
    )


@lru_cache(maxsize=4)
def load_families(*, held_out: bool = False) -> tuple[Family, ...]:
    """The families of training, or those that no training example contains."""
    folder = resources.files("sterna.evals.small_bugs") / "data" / "families"
    blocks: list[str] = []
    for name in HELD_OUT_FILES if held_out else TRAINING_FILES:
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        blocks += [block for block in re.split(r"^### ", text, flags=re.MULTILINE) if block.strip()]
    return tuple(parse_block(block) for block in blocks)
