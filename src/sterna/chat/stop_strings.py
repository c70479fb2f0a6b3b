"""Stop strings over a stream of tokens: what could become a match is held back until it is decided."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sterna.chat.tokenizer import Tokenizer


class StopStringMatcher:
    """Finds the string that is complete first in the text of a token stream, of several that end together the longest.

    Tokens go in one by one and come out as soon as no match can begin in them any more. After a match ``matched`` is
    the string that was found, and what came out is the text before it: whole tokens, and for a match that begins
    inside a token, the part before it encoded again.
    """

    def __init__(self, stop: Sequence[str], tokenizer: Tokenizer) -> None:
        self._stop = tuple(string for string in stop if string)
        self._tokenizer = tokenizer
        self._decoder = tokenizer.decoder()
        self._held: deque[tuple[int, int]] = deque()
        self._text = ""
        self.matched: str | None = None

    def feed(self, token_id: int) -> list[int]:
        """Tokens that became certain with this one; after a match none ever will."""
        if self.matched is not None:
            return []
        piece = self._decoder.feed(token_id)
        self._text += piece
        self._held.append((token_id, len(piece)))
        found = [(self._text.find(string), string) for string in self._stop if string in self._text]
        if not found:
            return self._release(len(self._text) - self._open_suffix())
        start, self.matched = min(found, key=lambda item: (item[0] + len(item[1]), item[0]))
        before = len(self._text) - start
        released = self._release(start)
        rest = self._tokenizer.encode(self._text[: len(self._text) - before])
        self._held.clear()
        return released + rest

    def _release(self, end: int) -> list[int]:
        """Let go of the tokens whose text lies before position ``end`` of the held text."""
        count = size = 0
        position = 0
        for index, (_, length) in enumerate(self._held):
            position += length
            if position > end:
                break
            # a token without text is the start of a character, and goes with the token that completes it
            if length:
                count, size = index + 1, position
        self._text = self._text[size:]
        return [self._held.popleft()[0] for _ in range(count)]

    def flush(self) -> list[int]:
        """Tokens still held when the stream ends without a match."""
        rest = [token_id for token_id, _ in self._held]
        self._held.clear()
        self._text = ""
        return rest

    def _open_suffix(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = 0
        for string in self._stop:
            for length in range(min(len(string) - 1, len(self._text)), longest, -1):
                if self._text.endswith(string[:length]):
                    longest = length
                    break
        return longest
