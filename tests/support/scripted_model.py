"""A model that says what a test wrote down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sterna.chat.messages import (
    ChatEvent,
    End,
    Message,
    ReasoningDelta,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallArgumentsDelta,
    ToolCallEnd,
    ToolCallError,
    ToolCallStart,
)
from sterna.types import FinishReason, Usage

Turn = Message | str | BaseException | Sequence[ChatEvent]


def call(name: str, **arguments: Any) -> ToolCall:
    """A tool call; its id is set by ``turn``."""
    return ToolCall(name, arguments)


def turn(*calls: ToolCall, reasoning: str | None = None, text: str = "") -> Message:
    """An assistant turn with numbered call ids."""
    numbered = tuple(ToolCall(item.name, item.arguments, f"call_{index}") for index, item in enumerate(calls))
    return Message("assistant", text, reasoning=reasoning, tool_calls=numbered)


def malformed(raw: str, message: str) -> list[ChatEvent]:
    """A turn whose only tool call cannot be read."""
    end = End(FinishReason.STOP, Message("assistant", raw), _usage(raw))
    return [ToolCallError(0, raw, message), end]


class ScriptedModel:
    """Plays ``turns`` in order: a Message, raw text in the model's own syntax, ready events, or an exception to raise.

    ``seen`` has the messages of every request, for tests of what the model saw.
    """

    def __init__(self, *turns: Turn) -> None:
        self._turns = list(turns)
        self.seen: list[tuple[Message, ...]] = []

    @property
    def remaining(self) -> int:
        """How many turns nobody asked for."""
        return len(self._turns)

    def respond(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[ChatEvent]:
        """The next scripted turn."""
        self.seen.append(tuple(messages))
        assert self._turns, "the model was asked for more turns than the script has"
        item = self._turns.pop(0)
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, Message):
            yield from _message_events(item)
        elif isinstance(item, str):
            yield from _text_events(item, tools)
        else:
            yield from item


def _message_events(message: Message) -> Iterator[ChatEvent]:
    assert isinstance(message.content, str)
    if message.reasoning:
        yield ReasoningDelta(message.reasoning)
    if message.content:
        yield TextDelta(message.content)
    for index, item in enumerate(message.tool_calls):
        yield ToolCallStart(index, item.id, item.name)
        yield ToolCallArgumentsDelta(index, json.dumps(dict(item.arguments)))
        yield ToolCallEnd(index, item)
    reason = FinishReason.TOOL_CALLS if message.tool_calls else FinishReason.STOP
    yield End(reason, message, _usage(message.content + (message.reasoning or "")))


def _text_events(text: str, tools: Sequence[Tool]) -> Iterator[ChatEvent]:
    # Imported here so that scripts made of messages need nothing of the chat package but its messages.
    from sterna.chat.stream_parser import StreamParser

    parser = StreamParser(tools=tools, enable_thinking="</think>" in text)
    for character in text:
        yield from parser.feed_text(character)
    yield from parser.finish(FinishReason.STOP, _usage(text))


def _usage(text: str) -> Usage:
    return Usage(prompt_tokens=10, completion_tokens=1 + len(text) // 4, computed_tokens=10)
