"""``POST /v1/messages``: parsing into `ChatRequest`, rendering from `ChatEvent`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterator, Mapping
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
from sterna.server.sse import named
from sterna.server.turns import TurnStore, new_key
from sterna.types import FinishReason, Usage

# its suffix is a hash of the first user message, which would make every conversation's prefix its own
_BILLING_HEADER = "x-anthropic-billing-header:"
_UNSUPPORTED = ("mcp_servers", "container")
_KNOWN = frozenset(
    {
        "model", "messages", "system", "tools", "tool_choice", "stream", "max_tokens", "stop_sequences", "thinking",
        "output_config", "output_format", *requests.SAMPLING_FIELDS, *_UNSUPPORTED,
    }
)  # fmt: skip


@dataclass(slots=True)
class MessagesRequest(Parsed):
    """A parsed request. ``callable_tools`` has the deferred ones too, which the prompt shows where they were loaded."""

    callable_tools: tuple[Tool, ...] = ()
    thinks: bool = False
    stop: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reader:
    turns: TurnStore
    deferred: dict[str, Tool] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def parse(body: Mapping[str, Any], turns: TurnStore) -> MessagesRequest:
    """The request in a JSON body.

    Raises:
        UsageError: a field of the wrong type or value, or one that cannot be honoured.
    """
    fields.note_unknown("messages", body, _KNOWN)
    fields.refuse(body, _UNSUPPORTED, why="is not supported by this server")
    tools, deferred = _tools(body)
    reader = _Reader(turns, deferred)
    messages = _system(body.get("system"), reader)
    items = fields.mappings(body, "messages")
    if not items:
        raise FieldError("messages", "is empty, allowed is one message or more")
    for index, item in enumerate(items):
        messages += _messages(item, f"messages[{index}]", reader)
    thinking = fields.text(fields.mapping(body, "thinking"), "type", "disabled")
    if thinking not in ("enabled", "adaptive", "disabled"):
        raise FieldError("thinking", f"has type {thinking[:40]!r}, allowed are enabled, adaptive and disabled")
    format_ = fields.mapping(fields.mapping(body, "output_config"), "format") or fields.mapping(body, "output_format")
    stop = fields.strings(body, "stop_sequences")
    request = requests.build_request(
        body,
        messages,
        tools,
        max_tokens=requests.limit(body, "max_tokens"),
        stop=stop,
        enable_thinking=thinking != "disabled",
        tool_choice=_tool_choice(fields.mapping(body, "tool_choice")),
        schema=requests.schema_of(format_, "output_config.format"),
    )
    return MessagesRequest(
        request,
        stream=fields.flag(body, "stream"),
        warnings=reader.warnings,
        callable_tools=(*request.tools, *deferred.values()) if request.tools else (),
        thinks=request.enable_thinking,
        stop=stop,
    )


def _tools(body: Mapping[str, Any]) -> tuple[list[Tool], dict[str, Tool]]:
    """The tools of the prompt's head, and by name those that are loaded later, if ever."""
    head, deferred = [], {}
    for item in fields.mappings(body, "tools"):
        kind = fields.text(item, "type", "custom")
        if kind != "custom":
            fields.note_unknown("messages tools", {kind: 1}, ())
            continue
        tool = requests.function_tool(item, schema_name="input_schema")
        if fields.flag(item, "defer_loading"):
            deferred[tool.name] = tool
        else:
            head.append(tool)
    return head, deferred


def _tool_choice(value: Mapping[str, Any]) -> ToolChoice:
    kind = fields.text(value, "type", "auto")
    modes = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
    if kind not in modes:
        raise FieldError("tool_choice", f"has type {kind[:40]!r}, allowed are auto, any, tool and none")
    return ToolChoice(modes[kind], fields.text(value, "name"))


def _system(value: object, reader: _Reader) -> list[Message]:
    content = requests.content(value, "system", reader.warnings)
    texts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    kept = [text for text in texts if text and not text.lstrip().startswith(_BILLING_HEADER)]
    return [Message("system", "\n\n".join(kept))] if kept else []


def _messages(item: Mapping[str, Any], where: str, reader: _Reader) -> list[Message]:
    role = item.get("role")
    content = item.get("content")
    if role == "assistant":
        return [_assistant(content, where, reader)]
    if role == "system":
        return _system(content, reader)
    if role != "user":
        raise FieldError(f"{where}.role", f"is {str(role)[:40]!r}, allowed are user, assistant and system")
    if content is None or isinstance(content, str):
        return [Message("user", content)]
    found: list[Message] = []
    for block in fields.mappings(item, "content"):
        if block.get("type") == "tool_result":
            result = _tool_result(block, where, reader)
            found.append(Message("tool", result, tool_call_id=fields.text(block, "tool_use_id")))
            continue
        text = requests.plain(requests.content([_as_part(block)], f"{where}.content", reader.warnings))
        if found and found[-1].role == "user":
            # blocks are paragraphs of their own, as the client wrote them
            found[-1] = Message("user", f"{found[-1].content}\n{text}")
        else:
            found.append(Message("user", text))
    return found or [Message("user", "")]


def _as_part(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """A document of plain text as a text part; every other block as it is."""
    source = block.get("source")
    if block.get("type") == "document" and isinstance(source, dict) and source.get("type") == "text":
        return {"type": "text", "text": source.get("data")}
    return block


def _tool_result(block: Mapping[str, Any], where: str, reader: _Reader) -> str:
    content = block.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in fields.mappings(block, "content"):
        if part.get("type") == "tool_reference":
            name = fields.text(part, "tool_name")
            tool = reader.deferred.get(name)
            texts.append(json.dumps(tool.as_json(), ensure_ascii=False) if tool else f"tool {name} is available")
        else:
            texts.append(requests.plain(requests.content([_as_part(part)], f"{where}.content", reader.warnings)))
    return "\n".join(texts)


def _assistant(content: object, where: str, reader: _Reader) -> Message:
    if content is None or isinstance(content, str):
        return reader.turns.restore(Message("assistant", content))
    reasoning: list[str] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    key = None
    for block in fields.mappings({"content": content}, "content"):
        kind = block.get("type")
        if kind == "thinking":
            reasoning.append(fields.text(block, "thinking"))
            key = fields.text(block, "signature") or key
        elif kind == "redacted_thinking":
            key = fields.text(block, "data") or key
        elif kind == "tool_use":
            arguments = parse_arguments(block.get("input"))
            calls.append(ToolCall(fields.text(block, "name"), arguments, fields.text(block, "id")))
        elif kind == "text":
            texts.append(fields.text(block, "text"))
        else:
            fields.note_unknown("messages content", {str(kind): 1}, ())
    message = Message("assistant", "\n\n".join(texts), "\n\n".join(reasoning) or None, tuple(calls))
    return reader.turns.restore(message, key=key)


def usage_json(usage: Usage) -> dict[str, Any]:
    """Token counts as this protocol names them: ``input_tokens`` are those that no cache had."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


class StreamRenderer:
    """The events of one answer; ``message`` is the whole answer once they are all sent."""

    def __init__(
        self, model: str, turns: TurnStore, parsed: MessagesRequest, *, prompt_tokens: int, eos: Collection[int]
    ) -> None:
        self._turns = turns
        self._parsed = parsed
        self._eos = eos
        self._key = new_key()
        self._open: dict[str, Any] | None = None
        self._json: list[str] = []
        self._calls = 0
        self.message: dict[str, Any] = {
            "id": "msg_" + secrets.token_hex(12),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # what the cache had is known when the answer begins, and stands in message_delta
            "usage": usage_json(Usage(prompt_tokens=prompt_tokens)),
        }

    def start(self) -> Iterator[bytes]:
        """The message without content."""
        yield named({"type": "message_start", "message": {**self.message, "content": []}})

    def feed(self, index: int, event: ChatEvent) -> Iterator[bytes]:
        """The events of one event."""
        if isinstance(event, ReasoningDelta):
            if self._parsed.thinks:
                yield from self._switch("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": event.text})
        elif isinstance(event, TextDelta):
            yield from self._switch("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": event.text})
        elif isinstance(event, ToolCallStart):
            self._calls += 1
            yield from self._close()
            yield from self._switch("", {"type": "tool_use", "id": event.id, "name": event.name, "input": {}})
        elif isinstance(event, ToolCallArgumentsDelta):
            self._json.append(event.json)
            yield self._delta({"type": "input_json_delta", "partial_json": event.json})
        elif isinstance(event, End):
            yield from self._close()
            yield from self._end(event)

    def keep_alive(self) -> bytes:
        """The protocol's own."""
        return named({"type": "ping"})

    def end(self) -> Iterator[bytes]:
        """The end mark."""
        yield named({"type": "message_stop"})

    def _switch(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        """Opens a block unless one of its kind is open."""
        if self._open is not None and self._open["type"] == kind:
            return
        yield from self._close()
        self._open = block
        self._json = []
        start = {"type": "content_block_start", "index": self._index, "content_block": dict(block)}
        yield named(start)

    @property
    def _index(self) -> int:
        return len(self.message["content"])

    def _delta(self, delta: dict[str, Any]) -> bytes:
        assert self._open is not None
        for name in ("thinking", "text"):
            if name in delta:
                self._open[name] += delta[name]
        return named({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> Iterator[bytes]:
        block, self._open = self._open, None
        if block is None:
            return
        index = self._index
        if block["type"] == "thinking":
            block["signature"] = self._key
            delta = {"type": "signature_delta", "signature": self._key}
            yield named({"type": "content_block_delta", "index": index, "delta": delta})
        elif block["type"] == "tool_use":
            block["input"] = json.loads("".join(self._json) or "{}")
        self.message["content"].append(block)
        yield named({"type": "content_block_stop", "index": index})

    def _end(self, end: End) -> Iterator[bytes]:
        self._turns.remember(end.message, key=self._key)
        message = self.message
        message["usage"] = usage_json(end.usage)
        ids = end.message.token_ids
        if end.finish_reason is FinishReason.LENGTH:
            message["stop_reason"] = "max_tokens"
        elif self._calls:
            message["stop_reason"] = "tool_use"
        elif self._parsed.stop and ids and ids[-1] not in self._eos:
            message["stop_reason"] = "stop_sequence"
            # with several it is not on record which one it was
            message["stop_sequence"] = self._parsed.stop[0] if len(self._parsed.stop) == 1 else None
        else:
            message["stop_reason"] = "end_turn"
        delta = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
        yield named({"type": "message_delta", "delta": delta, "usage": message["usage"]})
