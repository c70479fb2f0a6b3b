"""Incremental parts of the stream parser: markers in text, text without outer white space, arguments as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from sterna.chat.tool_calls import ToolTable

# Inside the parser a marker is one lone surrogate, which no valid text contains.
THINK, THINK_END, CALL, CALL_END = "\ud800", "\ud801", "\ud802", "\ud803"
MARKER_LITERALS = {THINK: "<think>", THINK_END: "</think>", CALL: "<tool_call>", CALL_END: "</tool_call>"}
_MARKER_OF_LITERAL = {literal: marker for marker, literal in MARKER_LITERALS.items()}
_LITERAL_TABLE = str.maketrans(MARKER_LITERALS)
_LITERAL_PATTERN = re.compile("|".join(map(re.escape, _MARKER_OF_LITERAL)))
_SURROGATE = re.compile("[\ud800-\udfff]")


def with_literals(text: str) -> str:
    """The text with every marker spelled out."""
    return text.translate(_LITERAL_TABLE)


def clean(text: str) -> str:
    """The text with U+FFFD in place of lone surrogates, so that none can be taken for a marker."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def held_back(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``tag``."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0


class MarkerLexer:
    """Finds markers in text that arrives in pieces, for where there are no token ids."""

    def __init__(self) -> None:
        self._pending = ""

    def feed(self, text: str) -> str:
        """The text that became certain, with markers in their one-character form."""
        self._pending += clean(text)
        found = _LITERAL_PATTERN.sub(lambda match: _MARKER_OF_LITERAL[match.group()], self._pending)
        held = max(held_back(found, literal) for literal in _MARKER_OF_LITERAL)
        cut = len(found) - held
        self._pending = found[cut:]
        return found[:cut]

    def flush(self) -> str:
        """What was held back."""
        rest, self._pending = self._pending, ""
        return rest


class TrimmedStream:
    """Text that arrives in pieces, without white space at its two ends."""

    def __init__(self, *, started: bool = False) -> None:
        self._started = started
        self._separating = False
        self._space = ""
        self._parts: list[str] = []

    def feed(self, text: str) -> str:
        """The text that became certain: white space waits for what follows it."""
        if not self._started or self._separating:
            text = text.lstrip()
            if not text:
                return ""
        text = self._space + text
        self._started, self._separating = True, False
        emitted = text.rstrip()
        self._space = text[len(emitted) :]
        self._parts.append(emitted)
        return emitted

    def separate(self) -> None:
        """Puts a blank line between what was fed and what will be."""
        if self._started:
            self._space, self._separating = "\n\n", True

    @property
    def text(self) -> str:
        """Everything emitted so far."""
        return "".join(self._parts)

    @property
    def is_blank(self) -> bool:
        """Nothing but white space was fed."""
        return not any(self._parts)


class ArgumentStream:
    """Builds the arguments of one call and, at the same time, their JSON text."""

    def __init__(self, tools: ToolTable, name: str, emit: Callable[[str], None]) -> None:
        self._tools = tools
        self._name = name
        self._emit = emit
        self._key: str | None = None
        self._parts: list[str] = []
        self._streamed = False
        self._repeated = False
        self._closed = False
        self.arguments: dict[str, Any] = {}
        self.problems: list[str] = []

    def open(self, key: str) -> None:
        """Begins the value of a parameter."""
        self._key, self._parts = key, []
        self._repeated = key in self.arguments
        self._streamed = not self._repeated and self._tools.is_text(self._name, key)
        if self._repeated:
            self.problems.append(f"tool {self._name!r}: parameter {key!r} is given twice")
            return
        lead = ", " if self.arguments else "{"
        self._emit(lead + json.dumps(key, ensure_ascii=False) + ": " + ('"' if self._streamed else ""))

    def feed(self, text: str) -> None:
        """A piece of the value."""
        if not text:
            return
        self._parts.append(text)
        if self._streamed:
            self._emit(json.dumps(text, ensure_ascii=False)[1:-1])

    def close(self) -> None:
        """Ends the value of the parameter."""
        key, self._key = self._key, None
        if key is None or self._repeated:
            return
        raw = "".join(self._parts)
        value, problem = self._tools.coerce(self._name, key, raw)
        if problem is not None:
            self.problems.append(problem)
        self.arguments[key] = value
        self._emit('"' if self._streamed else json.dumps(value, ensure_ascii=False))

    def finish(self) -> None:
        """Ends the JSON object, whatever state it is in."""
        self.close()
        if not self._closed:
            self._emit("}" if self.arguments else "{}")
            self._closed = True
