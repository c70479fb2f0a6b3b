"""The sampled tokens of finished turns, found again by the ids of their calls or by what came before them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from sterna.chat.messages import Message
from sterna.chat.normalise import as_turn
from sterna.sessions.same_turn import canonical_arguments

MAX_TURNS = 4_096
# Answers that are remembered for one and the same conversation, as when a user asks for another one.
MAX_SIBLINGS = 8
START = b""


def extend(context: bytes, message: Message) -> bytes:
    """Digest of a conversation that goes on with ``message``: what was said, not how it was spelled; reasoning aside."""
    turn = as_turn(message)
    parts: list[Any] = [part.strip() if isinstance(part, str) else repr(part) for part in turn.parts]
    calls = [[call.name, canonical_arguments(call)] for call in message.tool_calls]
    said = json.dumps([turn.role, [part for part in parts if part], calls], sort_keys=True, default=str)
    return hashlib.blake2b(context + said.encode("utf-8", "replace"), digest_size=16).digest()


class TurnLog:
    """Turns with their ``token_ids``, separate for each namespace; the least recently used are forgotten. Thread-safe."""

    def __init__(self, max_turns: int = MAX_TURNS) -> None:
        self._max_turns = max_turns
        self._lock = threading.Lock()
        self._turns: OrderedDict[int, tuple[str, bytes, Message]] = OrderedDict()
        self._by_call: dict[tuple[str, str], int] = {}
        self._by_context: dict[tuple[str, bytes], list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, namespace: str, context: bytes, message: Message) -> None:
        """Remember a turn that was sampled after a conversation with that digest."""
        if not message.token_ids:
            return
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._turns[number] = (namespace, context, message)
            for call in message.tool_calls:
                if call.id:
                    self._by_call[namespace, call.id] = number
            siblings = self._by_context.setdefault((namespace, context), [])
            siblings.append(number)
            surplus = [siblings[0]] if len(siblings) > MAX_SIBLINGS else []
            while surplus or len(self._turns) > self._max_turns:
                self._forget(surplus.pop() if surplus else next(iter(self._turns)))

    def find(self, namespace: str, context: bytes, message: Message) -> list[Message]:
        """Turns that ``message`` may be, the likeliest first: by call ids, then the latest after the same conversation."""
        with self._lock:
            ids = (self._by_call.get((namespace, call.id)) for call in message.tool_calls if call.id)
            numbers: Iterable[int | None] = (*ids, *reversed(self._by_context.get((namespace, context), ())))
            found = dict.fromkeys(number for number in numbers if number is not None)
            for number in found:
                self._turns.move_to_end(number)
            return [self._turns[number][2] for number in found]

    def _forget(self, number: int) -> None:
        namespace, context, message = self._turns.pop(number)
        for call in message.tool_calls:
            if self._by_call.get((namespace, call.id)) == number:
                del self._by_call[namespace, call.id]
        siblings = self._by_context[namespace, context]
        siblings.remove(number)
        if not siblings:
            del self._by_context[namespace, context]
