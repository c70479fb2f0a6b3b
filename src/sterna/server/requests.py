"""What all protocols share on the way in: sampling defaults, images, tool choice, JSON output, restored turns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sterna.chat.messages import ChatRequest, Message, Tool
from sterna.chat.presets import get_preset
from sterna.server import fields
from sterna.server.errors import FieldError
from sterna.types import SamplingParams

IMAGE_NOTE = "[an image was here, which this server cannot see]"
_IMAGE_KINDS = frozenset({"image", "image_url", "input_image"})
_TEXT_KINDS = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal"})
_SAMPLING_NAMES = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip
SAMPLING_FIELDS = (*_SAMPLING_NAMES, "top_k", "seed", "logit_bias")
_TOOL_NAME = re.compile(r"[^\s<>=]{1,256}")


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``auto``, ``none``, ``required`` or ``named`` with the name of a tool."""

    mode: str = "auto"
    name: str = ""


@dataclass(slots=True)
class Parsed:
    """A request of any protocol, without what its own renderer needs."""

    request: ChatRequest
    stream: bool = False
    choices: int = 1
    warnings: list[str] = field(default_factory=list)


def build_request(
    body: Mapping[str, Any],
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    max_tokens: int | None,
    stop: tuple[str, ...],
    enable_thinking: bool,
    preserve_thinking: bool = True,
    tool_choice: ToolChoice | None = None,
    schema: Mapping[str, Any] | None = None,
) -> ChatRequest:
    """The wire-free request: official sampling numbers where the client gives none."""
    messages = list(messages)
    notes = []
    choice = tool_choice or ToolChoice()
    if choice.mode == "none":
        tools = ()
    elif choice.mode in ("required", "named") and tools:
        if choice.mode == "named" and choice.name not in {tool.name for tool in tools}:
            raise FieldError("tool_choice", f"names the tool {choice.name!r}, which is not among tools")
        notes.append(f"Call the tool {choice.name} now." if choice.name else "Call one of the tools now.")
    if schema is not None:
        notes.append(json_note(schema))
    if notes:
        note = Message("system", " ".join(notes))
        place = len(messages) - 1 if messages and messages[-1].role == "assistant" else len(messages)
        messages.insert(place, note)
    preset = "instruct" if not enable_thinking else "agent" if tools else "thinking"
    request = get_preset(preset).apply(
        ChatRequest(
            tuple(messages),
            tuple(tools),
            SamplingParams(max_tokens=max_tokens, stop=stop),
            enable_thinking=enable_thinking,
            preserve_thinking=preserve_thinking,
        )
    )
    sampling = override(request.sampling, body)
    return replace(request, sampling=sampling, enable_thinking=enable_thinking)


def override(sampling: SamplingParams, body: Mapping[str, Any]) -> SamplingParams:
    """The sampling with everything that the client gives itself."""
    given: dict[str, Any] = {}
    for name in _SAMPLING_NAMES:
        value = fields.number(body, name)
        if value is not None:
            given[name] = value
    top_k = fields.whole(body, "top_k")
    if top_k is not None:
        # -1 is a common way to say "off"
        given["top_k"] = max(top_k, 0)
    given["seed"] = fields.whole(body, "seed")
    given["logit_bias"] = _logit_bias(fields.mapping(body, "logit_bias"))
    return replace(sampling, **given)


def _logit_bias(biases: Mapping[str, Any]) -> dict[int, float]:
    found: dict[int, float] = {}
    for name in biases:
        value = fields.number(biases, name)
        if not re.fullmatch(r"[0-9]{1,9}", name, re.ASCII) or value is None:
            raise FieldError("logit_bias", f"has {name[:40]!r}, allowed are token ids with a number each")
        if not -100 <= value <= 100:
            raise FieldError("logit_bias", f"of token {name} is {value}, allowed is -100 to 100")
        found[int(name)] = value
    return found


def limit(body: Mapping[str, Any], *names: str) -> int | None:
    """The output limit under the first of several names; the engine clamps it to what the context leaves."""
    name = fields.first_present(body, names)
    if name is None:
        return None
    value = fields.whole(body, name)
    if value is not None and value < 1:
        raise FieldError(name, f"is {value}, allowed is 1 or more")
    return value


def json_note(schema: Mapping[str, Any]) -> str:
    """The instruction for an answer in JSON; an empty schema allows any object."""
    note = "Answer with one JSON object and nothing else, no code fence."
    if schema:
        note += f" It must be valid under this JSON schema: {json.dumps(schema, ensure_ascii=False)}"
    return note


def schema_of(format_: Mapping[str, Any], param: str) -> Mapping[str, Any] | None:
    """The schema that an output format asks for: ``None`` for text, empty for any JSON object."""
    kind = fields.text(format_, "type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return {}
    if kind != "json_schema":
        raise FieldError(param, f"has type {kind[:40]!r}, allowed are text, json_object and json_schema")
    inner = fields.mapping(format_, "json_schema") or format_
    return fields.mapping(inner, "schema")


def content(value: object, param: str, warnings: list[str]) -> str | list[dict[str, str]] | None:
    """Content as text or text parts; an image becomes a short note.

    Raises:
        FieldError: a part that is neither text nor an image.
    """
    if value is None or isinstance(value, str):
        return value
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise FieldError(param, "is neither a string nor a list of parts")
    return [{"type": "text", "text": _part_text(item, param, warnings)} for item in items]


def _part_text(item: object, param: str, warnings: list[str]) -> str:
    if isinstance(item, str):
        return item
    if not isinstance(item, dict):
        raise FieldError(param, "has a part that is neither a string nor an object")
    kind = item.get("type")
    if (isinstance(kind, str) and kind in _IMAGE_KINDS) or (kind is None and "image_url" in item):
        if IMAGE_NOTE not in warnings:
            warnings.append(IMAGE_NOTE)
        return IMAGE_NOTE
    if kind is None or (isinstance(kind, str) and kind in _TEXT_KINDS):
        text = item.get("refusal") if kind == "refusal" else item.get("text")
        if text is None or isinstance(text, str):
            return text or ""
        raise FieldError(param, "has a text part whose text is not a string")
    raise FieldError(param, f"has a part of type {str(kind)[:40]!r}, allowed are text and images")


def plain(value: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The text of content as ``content`` returns it."""
    return value if isinstance(value, str) else "".join(str(part["text"]) for part in value or ())


def function_tool(item: Mapping[str, Any], *, schema_name: str = "parameters", prefix: str = "") -> Tool:
    """A tool from the object that holds its name, description and schema."""
    name = prefix + fields.text(item, "name")
    if not _TOOL_NAME.fullmatch(name):
        raise FieldError(
            "tools", f"has the name {name[:80]!r}, allowed are 1 to 256 characters without space, <, > or ="
        )
    schema = dict(fields.mapping(item, schema_name))
    schema.pop("$schema", None)
    return Tool(name, fields.text(item, "description"), schema or {"type": "object", "properties": {}})


def custom_tool(item: Mapping[str, Any], *, prefix: str = "") -> Tool:
    """A freeform tool: one text parameter called ``input``."""
    schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    return function_tool({**item, "parameters": schema}, prefix=prefix)
