"""Turns of the token log as they stand in a session's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sterna.chat.messages import Message, ToolCall
from sterna.sessions.session import Tokens


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """An assistant turn whose tokens begin at ``start``; ``context`` is the digest of the conversation before it."""

    start: int
    context: bytes
    message: Message

    def lies_in(self, tokens: Tokens) -> bool:
        """Whether these tokens hold the turn; the last one, which ends it, may be missing."""
        ids = self.message.token_ids or ()
        found = tokens[self.start : self.start + len(ids)]
        return len(found) >= len(ids) - 1 and np.array_equal(found, ids[: len(found)])

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        message = self.message
        return {
            "start": self.start,
            "context": self.context.hex(),
            "content": message.content,
            "reasoning": message.reasoning,
            "calls": [[call.name, dict(call.arguments), call.id] for call in message.tool_calls],
            "token_ids": message.token_ids,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StoredTurn:
        """Inverse of `as_json`."""
        message = Message(
            "assistant",
            data["content"],
            reasoning=data["reasoning"],
            tool_calls=tuple(ToolCall(name, arguments, id) for name, arguments, id in data["calls"]),
            token_ids=tuple(data["token_ids"]),
        )
        return cls(data["start"], bytes.fromhex(data["context"]), message)
