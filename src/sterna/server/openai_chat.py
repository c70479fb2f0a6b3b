"""``POST /v1/chat/completions``: parsing into `ChatRequest`, rendering from `ChatEvent`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
    ToolCallStart,
)
from sterna.chat.normalise import parse_arguments
from sterna.server import fields, requests
from sterna.server.errors import FieldError
from sterna.server.requests import Parsed, ToolChoice
from sterna.server.sse import DONE, data
from sterna.server.turns import TurnStore
from sterna.types import FinishReason, Usage

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_UNSUPPORTED = (
    "logprobs", "top_logprobs", "functions", "function_call", "audio", "web_search_options", "guided_json",
    "guided_regex", "guided_grammar", "guided_choice", "structured_outputs", "suffix", "best_of",
)  # fmt: skip
_KNOWN = frozenset(
    {
        "messages", "model", "tools", "tool_choice", "stream", "stream_options", "n", "stop", "max_tokens",
        "max_completion_tokens", "response_format", "reasoning_effort", "reasoning", "chat_template_kwargs",
        "enable_thinking", "parallel_tool_calls", "modalities", *requests.SAMPLING_FIELDS, *_UNSUPPORTED,
    }
)  # fmt: skip


@dataclass(slots=True)
class ChatCompletion(Parsed):
    """A parsed request."""

    include_usage: bool = False


def parse(body: Mapping[str, Any], turns: TurnStore, *, max_choices: int) -> ChatCompletion:
    """The request in a JSON body.

    Raises:
        UsageError: a field of the wrong type or value, or one that cannot be honoured.
    """
    fields.note_unknown("chat completions", body, _KNOWN)
    fields.refuse(body, _UNSUPPORTED, why="is not supported by this server")
    if "audio" in fields.strings(body, "modalities"):
        raise FieldError("modalities", "names audio, allowed is text")
    warnings: list[str] = []
    kwargs = fields.mapping(body, "chat_template_kwargs")
    choices = fields.whole(body, "n") or 1
    if not 1 <= choices <= max_choices:
        raise FieldError("n", f"is {choices}, allowed is 1 to {max_choices}")
    messages = [
        turns.restore(_message(item, f"messages[{index}]", warnings))
        for index, item in enumerate(fields.mappings(body, "messages"))
    ]
    if not messages:
        raise FieldError("messages", "is empty, allowed is one message or more")
    request = requests.build_request(
        body,
        messages,
        _tools(body),
        max_tokens=requests.limit(body, "max_completion_tokens", "max_tokens"),
        stop=fields.strings(body, "stop"),
        enable_thinking=fields.flag(kwargs, "enable_thinking", _thinks(body)),
        preserve_thinking=fields.flag(kwargs, "preserve_thinking", True),
        tool_choice=_tool_choice(body.get("tool_choice")),
        schema=requests.schema_of(fields.mapping(body, "response_format"), "response_format"),
    )
    return ChatCompletion(
        request,
        stream=fields.flag(body, "stream"),
        choices=choices,
        warnings=warnings,
        include_usage=fields.flag(fields.mapping(body, "stream_options"), "include_usage"),
    )


def _thinks(body: Mapping[str, Any]) -> bool:
    effort = body.get("reasoning_effort")
    reasoning = body.get("reasoning")
    if effort is None and isinstance(reasoning, dict):
        effort = reasoning.get("effort")
    return fields.flag(body, "enable_thinking", effort != "none")


def _message(item: Mapping[str, Any], where: str, warnings: list[str]) -> Message:
    role = item.get("role")
    if role not in _ROLES:
        raise FieldError(f"{where}.role", f"is {str(role)[:40]!r}, allowed are {', '.join(_ROLES)}")
    content = requests.content(item.get("content"), f"{where}.content", warnings)
    if role in ("tool", "function"):
        return Message("tool", content, tool_call_id=fields.text(item, "tool_call_id"))
    if role != "assistant":
        return Message(role, content)
    name = fields.first_present(item, ("reasoning_content", "reasoning"))
    reasoning = item[name] if name and isinstance(item[name], str) else None
    calls = tuple(_call(call) for call in fields.mappings(item, "tool_calls"))
    return Message("assistant", content, reasoning, calls)


def _call(item: Mapping[str, Any]) -> ToolCall:
    function = fields.mapping(item, "function") or fields.mapping(item, "custom")
    arguments = function.get("arguments", function.get("input"))
    return ToolCall(fields.text(function, "name"), parse_arguments(arguments), fields.text(item, "id"))


def _tools(body: Mapping[str, Any]) -> list[Tool]:
    found = []
    for item in fields.mappings(body, "tools"):
        kind = item.get("type", "function")
        if kind == "function":
            found.append(requests.function_tool(fields.mapping(item, "function") or item))
        elif kind == "custom":
            found.append(requests.custom_tool(fields.mapping(item, "custom") or item))
        else:
            fields.note_unknown("chat completions tools", {str(kind): 1}, ())
    return found


def _tool_choice(value: object) -> ToolChoice:
    if value is None:
        return ToolChoice()
    if isinstance(value, str):
        if value not in ("auto", "none", "required"):
            raise FieldError("tool_choice", f"is {value[:40]!r}, allowed are auto, none, required and a function")
        return ToolChoice(value)
    if not isinstance(value, dict):
        raise FieldError("tool_choice", "is neither a string nor an object")
    inner = fields.mapping(value, "function") or fields.mapping(value, "custom") or value
    name = fields.text(inner, "name")
    return ToolChoice("named", name) if name else _tool_choice(fields.text(value, "type", "auto"))


def usage_json(usage: Usage) -> dict[str, Any]:
    """Token counts as this protocol names them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def joined_usage(usages: Iterable[Usage]) -> Usage:
    """Counts of several answers to one prompt: its tokens count once, cached as the first choice found them."""
    total: Usage | None = None
    for usage in usages:
        if total is None:
            total = usage
            continue
        total = Usage(
            total.prompt_tokens,
            total.completion_tokens + usage.completion_tokens,
            total.cached_tokens,
            total.computed_tokens,
            total.reasoning_tokens + usage.reasoning_tokens,
        )
    return total or Usage()


def finish_reason(end: End, *, has_calls: bool) -> str:
    """Why the answer ended; a turn with calls that the client was shown ends with them."""
    if end.finish_reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if has_calls else "stop"


class StreamRenderer:
    """The chunks of a streamed answer."""

    def __init__(self, model: str, *, choices: int, include_usage: bool) -> None:
        self._model = model
        self._id = "chatcmpl-" + secrets.token_hex(12)
        self._created = int(time.time())
        self._choices = choices
        self._include_usage = include_usage
        self._called = [False] * choices
        self._usages: dict[int, Usage] = {}

    def start(self) -> Iterator[bytes]:
        """The role of every choice."""
        for index in range(self._choices):
            yield self._delta(index, {"role": "assistant", "content": ""})

    def feed(self, index: int, event: ChatEvent) -> Iterator[bytes]:
        """The chunk of one event."""
        if isinstance(event, End):
            self._usages[index] = event.usage
            reason = finish_reason(event, has_calls=self._called[index])
            yield self._delta(index, {}, reason)
            return
        delta = _delta_of(event)
        if delta:
            self._called[index] |= "tool_calls" in delta
            yield self._delta(index, delta)

    def keep_alive(self) -> bytes:
        """A chunk with an empty delta; some clients do not count comments."""
        return self._delta(0, {})

    def end(self) -> Iterator[bytes]:
        """Usage when it was asked for, and the end mark."""
        if self._include_usage:
            usage = joined_usage(self._usages[index] for index in sorted(self._usages))
            yield data({**self._head(), "choices": [], "usage": usage_json(usage)})
        yield DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": self._model,
        }  # fmt: skip

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        return data({**self._head(), "choices": [{"index": index, "delta": delta, "finish_reason": reason}]})


def _delta_of(event: ChatEvent) -> dict[str, Any]:
    if isinstance(event, ReasoningDelta):
        return {"reasoning_content": event.text}
    if isinstance(event, TextDelta):
        return {"content": event.text}
    if isinstance(event, ToolCallStart):
        function = {"name": event.name, "arguments": ""}
        return {"tool_calls": [{"index": event.index, "id": event.id, "type": "function", "function": function}]}
    if isinstance(event, ToolCallArgumentsDelta):
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.json}}]}
    return {}


@dataclass(slots=True)
class Answer:
    """One choice, collected."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    end: End | None = None

    def feed(self, event: ChatEvent) -> None:
        """Add an event."""
        if isinstance(event, TextDelta):
            self.text.append(event.text)
        elif isinstance(event, ReasoningDelta):
            self.reasoning.append(event.text)
        elif isinstance(event, ToolCallStart):
            self.calls[event.index] = {"id": event.id, "name": event.name, "arguments": ""}
        elif isinstance(event, ToolCallArgumentsDelta):
            self.calls[event.index]["arguments"] += event.json
        elif isinstance(event, End):
            self.end = event


def completion_json(model: str, answers: list[Answer]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    ends = [answer.end for answer in answers if answer.end is not None]
    return {
        "id": "chatcmpl-" + secrets.token_hex(12),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(index, answer) for index, answer in enumerate(answers)],
        "usage": usage_json(joined_usage(end.usage for end in ends)),
    }


def _choice(index: int, answer: Answer) -> dict[str, Any]:
    assert answer.end is not None
    message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.text) or None}
    if not answer.calls:
        message["content"] = "".join(answer.text)
    if answer.reasoning:
        message["reasoning_content"] = "".join(answer.reasoning)
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in answer.calls.values()
        ]
    reason = finish_reason(answer.end, has_calls=bool(answer.calls))
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}
