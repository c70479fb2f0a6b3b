"""The sampled tokens of earlier turns, found again when a client sends a turn back.

Clients parse arguments and print them anew, trim white space, drop reasoning. A turn that is recognised and still says
the same is rendered from the tokens that the model wrote, so that the cache holds.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sterna.chat.messages import Message, ToolCall

_MAX_TURNS = 4096


def new_key() -> str:
    """An opaque key for a turn; it means nothing to anybody else."""
    return "sterna-" + secrets.token_urlsafe(24)


class TurnStore:
    """Turns by the ids of their calls, by an opaque key and by their text; the least recently used are forgotten."""

    def __init__(self, max_turns: int = _MAX_TURNS) -> None:
        self._max_entries = 3 * max_turns
        self._lock = threading.Lock()
        self._turns: OrderedDict[str, Message] = OrderedDict()

    def remember(self, message: Message, *, key: str | None = None) -> None:
        """Keep a turn that was generated, under an opaque key too when the client was given one."""
        if message.token_ids is None:
            return
        names = [call.id for call in message.tool_calls if call.id] or [_text_name(message)]
        self._put([*names, key] if key else names, message)

    def restore(self, message: Message, *, key: str | None = None) -> Message:
        """The turn with its sampled tokens when it is known and unchanged, else as it came."""
        if message.role != "assistant" or message.token_ids is not None:
            return message
        names = [key] if key else []
        names += [call.id for call in message.tool_calls if call.id] or [_text_name(message)]
        with self._lock:
            found = next((self._turns[name] for name in names if name in self._turns), None)
            for name in names:
                if name in self._turns:
                    self._turns.move_to_end(name)
        if found is None or not _says_the_same(found, message):
            return message
        return replace(message, reasoning=found.reasoning, token_ids=found.token_ids)

    def _put(self, names: Sequence[str], message: Message) -> None:
        with self._lock:
            for name in names:
                self._turns[name] = message
                self._turns.move_to_end(name)
            while len(self._turns) > self._max_entries:
                self._turns.popitem(last=False)


def _text(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return (message.content or "").strip()
    return "".join(str(part.get("text") or "") for part in message.content).strip()


def _text_name(message: Message) -> str:
    return "text-" + hashlib.sha256(_text(message).encode("utf-8", errors="replace")).hexdigest()


def _says_the_same(stored: Message, sent: Message) -> bool:
    # clients put placeholders of their own where a turn of calls had no text
    if _text(stored) != _text(sent) and not (stored.tool_calls and not _text(stored)):
        return False
    if sent.reasoning and sent.reasoning.strip() != (stored.reasoning or "").strip():
        return False
    return len(stored.tool_calls) == len(sent.tool_calls) and all(map(_same_call, stored.tool_calls, sent.tool_calls))


def _same_call(stored: ToolCall, sent: ToolCall) -> bool:
    return stored.name == sent.name and _same_arguments(stored.arguments, sent.arguments)


def _same_arguments(stored: Mapping[str, Any], sent: Mapping[str, Any]) -> bool:
    """Equal apart from order and from defaults that a client writes out."""
    added = {name: value for name, value in sent.items() if name not in stored}
    if any(value not in (False, None) for value in added.values()):
        return False
    common = {name: value for name, value in sent.items() if name in stored}
    return json.dumps(common, sort_keys=True) == json.dumps(dict(stored), sort_keys=True)
