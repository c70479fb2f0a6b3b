"""Bounded text: the first and the last characters of an output of any size, in constant memory."""

from __future__ import annotations

import codecs

MAX_OUTPUT_CHARS = 16_000


def left_out_marker(count: int) -> str:
    """The line that stands for ``count`` characters left out (docs/dev/transcript.md)."""
    return f"\n[… {count} characters left out …]\n"


def truncate(text: str, *, max_chars: int = MAX_OUTPUT_CHARS) -> str:
    """``text`` when it has at most ``max_chars`` characters, else its two ends with the marker between."""
    half = max_chars // 2
    if len(text) <= 2 * half:
        return text
    return text[:half] + left_out_marker(len(text) - 2 * half) + text[-half:]


class HeadTail:
    """Collects bytes and keeps the first and last ``max_chars // 2`` characters; invalid UTF-8 becomes U+FFFD."""

    def __init__(self, *, max_chars: int = MAX_OUTPUT_CHARS) -> None:
        self._half = max_chars // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._head = ""
        self._tail = ""
        self._total = 0

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Takes the next bytes; ``final`` ends an unfinished character."""
        text = self._decoder.decode(data, final)
        self._total += len(text)
        room = self._half - len(self._head)
        if room > 0:
            self._head += text[:room]
            text = text[room:]
        if text:
            self._tail = (self._tail + text)[-self._half :]

    @property
    def left_out_chars(self) -> int:
        """How many characters between head and tail were dropped."""
        return self._total - len(self._head) - len(self._tail)

    def text(self) -> str:
        """Head and tail, with the marker between when something was dropped."""
        left_out = self.left_out_chars
        return self._head + (left_out_marker(left_out) if left_out else "") + self._tail
