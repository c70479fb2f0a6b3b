"""``POST /v1/responses``, the way in: items to `ChatRequest`. The way out is ``responses_stream``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sterna.chat.messages import Message, Tool, ToolCall
from sterna.chat.normalise import parse_arguments
from sterna.server import fields, requests
from sterna.server.errors import FieldError
from sterna.server.requests import Parsed, ToolChoice
from sterna.server.turns import TurnStore

_UNSUPPORTED = ("background", "conversation", "prompt", "top_logprobs")
_KNOWN = frozenset(
    {
        "model", "input", "instructions", "tools", "tool_choice", "stream", "max_output_tokens", "reasoning", "text",
        "include", "store", "previous_response_id", "parallel_tool_calls", "chat_template_kwargs", "stop", "metadata",
        *requests.SAMPLING_FIELDS, *_UNSUPPORTED,
    }
)  # fmt: skip
_OUTPUT_KINDS = ("function_call_output", "custom_tool_call_output")


@dataclass(frozen=True, slots=True)
class CalledName:
    """What a client calls a tool that the model knows by one name."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


@dataclass(slots=True)
class ResponsesRequest(Parsed):
    """A parsed request. ``echo`` are fields that the response repeats; ``names`` the tools by the model's names."""

    names: dict[str, CalledName] = field(default_factory=dict)
    conversation: tuple[Message, ...] = ()
    store: bool = True
    wants_key: bool = False
    echo: dict[str, Any] = field(default_factory=dict)


def parse(body: Mapping[str, Any], turns: TurnStore, history: Sequence[Message] = ()) -> ResponsesRequest:
    """The request in a JSON body; ``history`` is what the previous response stood on, and its answer.

    Raises:
        UsageError: a field of the wrong type or value, or one that cannot be honoured.
    """
    fields.note_unknown("responses", body, _KNOWN)
    fields.refuse(body, _UNSUPPORTED, why="is not supported by this server")
    warnings: list[str] = []
    instructions = fields.text(body, "instructions")
    # instructions are this request's own; the next response does not inherit them
    conversation = (*history, *_messages(body.get("input"), turns, warnings))
    messages = [*([Message("system", instructions)] if instructions else ()), *conversation]
    if not messages:
        raise FieldError("input", "is empty, allowed is a text or one item or more")
    tools, names = _tools(body)
    kwargs = fields.mapping(body, "chat_template_kwargs")
    effort = fields.text(fields.mapping(body, "reasoning"), "effort", "medium")
    max_tokens = requests.limit(body, "max_output_tokens")
    request = requests.build_request(
        body,
        messages,
        tools,
        max_tokens=max_tokens,
        stop=fields.strings(body, "stop"),
        enable_thinking=fields.flag(kwargs, "enable_thinking", effort != "none"),
        preserve_thinking=fields.flag(kwargs, "preserve_thinking", True),
        tool_choice=_tool_choice(body.get("tool_choice"), names),
        schema=requests.schema_of(fields.mapping(fields.mapping(body, "text"), "format"), "text.format"),
    )
    return ResponsesRequest(
        request,
        stream=fields.flag(body, "stream"),
        warnings=warnings,
        names=names,
        conversation=conversation,
        store=fields.flag(body, "store", True),
        wants_key="reasoning.encrypted_content" in fields.strings(body, "include"),
        echo={
            "instructions": instructions or None,
            "metadata": dict(fields.mapping(body, "metadata")),
            "parallel_tool_calls": fields.flag(body, "parallel_tool_calls", True),
            "previous_response_id": body.get("previous_response_id"),
            "max_output_tokens": max_tokens,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
        },
    )


def _messages(value: object, turns: TurnStore, warnings: list[str]) -> list[Message]:
    if value is None:
        return []
    if isinstance(value, str):
        return [Message("user", value)]
    if not isinstance(value, list):
        raise FieldError("input", "is neither a text nor a list of items")
    reader = _ItemReader(turns, warnings)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise FieldError(f"input[{index}]", "is not an object")
        reader.read(item, f"input[{index}]")
    reader.flush()
    return reader.messages


class _ItemReader:
    """Joins reasoning, text and calls that follow each other into one assistant turn."""

    def __init__(self, turns: TurnStore, warnings: list[str]) -> None:
        self.messages: list[Message] = []
        self._turns = turns
        self._warnings = warnings
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._key: str | None = None
        self._is_open = False

    def read(self, item: Mapping[str, Any], where: str) -> None:
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            self._read_message(item, where)
        elif kind == "reasoning":
            if self._texts or self._calls:
                self.flush()
            self._is_open = True
            self._reasoning += self._reasoning_texts(item, where)
            self._key = fields.text(item, "encrypted_content") or self._key
        elif kind in ("function_call", "custom_tool_call"):
            self._is_open = True
            arguments = item.get("arguments") if kind == "function_call" else {"input": item.get("input")}
            name = fields.text(item, "name")
            self._calls.append(ToolCall(name, parse_arguments(arguments), fields.text(item, "call_id")))
        elif kind in _OUTPUT_KINDS:
            self.flush()
            content = requests.content(item.get("output"), f"{where}.output", self._warnings)
            self.messages.append(Message("tool", content, tool_call_id=fields.text(item, "call_id")))
        elif kind == "item_reference":
            raise FieldError(where, "is an item_reference, which this server does not support")
        else:
            fields.note_unknown("responses input", {str(kind): 1}, ())

    def _read_message(self, item: Mapping[str, Any], where: str) -> None:
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise FieldError(f"{where}.role", f"is {str(role)[:40]!r}, allowed are system, developer, user, assistant")
        content = requests.content(item.get("content"), f"{where}.content", self._warnings)
        if role != "assistant":
            self.flush()
            self.messages.append(Message(role, content))
            return
        if self._texts or self._calls:
            self.flush()
        self._is_open = True
        self._texts.append(requests.plain(content))

    def _reasoning_texts(self, item: Mapping[str, Any], where: str) -> Iterable[str]:
        for name in ("content", "summary"):
            text = requests.plain(requests.content(item.get(name), f"{where}.{name}", self._warnings))
            if text:
                return [text]
        return []

    def flush(self) -> None:
        """End the assistant turn that is open."""
        if self._is_open:
            reasoning = "\n\n".join(self._reasoning) or None
            message = Message("assistant", "\n\n".join(self._texts), reasoning, tuple(self._calls))
            self.messages.append(self._turns.restore(message, key=self._key))
        self._reasoning, self._texts, self._calls = [], [], []
        self._key, self._is_open = None, False


def _tools(body: Mapping[str, Any]) -> tuple[list[Tool], dict[str, CalledName]]:
    tools: list[Tool] = []
    names: dict[str, CalledName] = {}
    for item in fields.mappings(body, "tools"):
        if item.get("type") == "namespace":
            namespace = fields.text(item, "name")
            for inner in fields.mappings(item, "tools"):
                _add_tool(inner, namespace, tools, names)
        else:
            _add_tool(item, None, tools, names)
    return tools, names


def _add_tool(item: Mapping[str, Any], namespace: str | None, tools: list[Tool], names: dict[str, CalledName]) -> None:
    kind = item.get("type", "function")
    if kind not in ("function", "custom"):
        # tools that run on the vendor's side, such as web_search
        fields.note_unknown("responses tools", {str(kind): 1}, ())
        return
    taken = fields.text(item, "name") in names
    prefix = f"{namespace}__" if taken and namespace else ""
    make = requests.custom_tool if kind == "custom" else requests.function_tool
    tool = make(item, prefix=prefix)
    tools.append(tool)
    names[tool.name] = CalledName(fields.text(item, "name"), namespace, kind == "custom")


def _tool_choice(value: object, names: Mapping[str, CalledName]) -> ToolChoice:
    if value is None:
        return ToolChoice()
    if isinstance(value, str):
        if value not in ("auto", "none", "required"):
            raise FieldError("tool_choice", f"is {value[:40]!r}, allowed are auto, none, required and a function")
        return ToolChoice(value)
    if not isinstance(value, dict):
        raise FieldError("tool_choice", "is neither a string nor an object")
    name = fields.text(value, "name")
    if name:
        return ToolChoice("named", next((own for own, called in names.items() if called.name == name), name))
    return _tool_choice(fields.text(value, "mode", "auto"), names)
