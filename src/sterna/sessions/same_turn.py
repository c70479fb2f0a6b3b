"""Whether an assistant turn that a client sends back says the same as the one that was sampled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sterna.chat.messages import Message, Tool, ToolCall
from sterna.chat.normalise import as_turn, parse_arguments

# Clients that must not send an empty text put a note in brackets in its place, beside the calls of the turn.
_FILLER = re.compile(r"\[[^\[\]\n]{1,120}\]")


def text_of(message: Message) -> str | None:
    """The text of a turn without outer white space and without reasoning; ``None`` when it holds more than text."""
    parts = as_turn(message).parts
    return "".join(part for part in parts if isinstance(part, str)).strip() if _is_text(parts) else None


def reasoning_of(message: Message) -> str:
    """The reasoning of a turn, also where a client sent it inside the text, without outer white space."""
    return (as_turn(message).reasoning or "").strip()


def is_same_turn(logged: Message, sent: Message, *, tools: Sequence[Tool] = (), allow_dropped_reasoning: bool) -> bool:
    """Whether ``sent`` differs from ``logged`` in form only.

    Equal are: outer white space; text as string or parts; empty text, none, or a bracketed filler beside calls; arguments
    printed anew, in another order, with defaults written out or left out. Reasoning must be the same, or, if allowed, absent.
    """
    text = text_of(sent)
    if text is None or not _same_text(logged, text):
        return False
    reasoning = reasoning_of(sent)
    if reasoning != reasoning_of(logged) and (reasoning or not allow_dropped_reasoning):
        return False
    schemas = {tool.name: tool.parameters for tool in tools}
    return len(logged.tool_calls) == len(sent.tool_calls) and all(
        _same_call(a, b, schemas.get(a.name, {})) for a, b in zip(logged.tool_calls, sent.tool_calls, strict=True)
    )


def is_same_form(logged: Message, sent: Message) -> bool:
    """Whether the client changed nothing that could be seen in the prompt."""
    return (
        (logged.content or "") == (sent.content or "")
        and (logged.reasoning or "") == (sent.reasoning or "")
        and [(c.name, _dump(c.arguments)) for c in logged.tool_calls]
        == [(c.name, _dump(c.arguments)) for c in sent.tool_calls]
    )


def canonical_arguments(call: ToolCall) -> Any:
    """Arguments with sorted keys, for comparison as text."""
    return json.dumps(parse_arguments(call.arguments), sort_keys=True, default=str)


def _is_text(parts: Sequence[object]) -> bool:
    return all(isinstance(part, str) for part in parts)


def _same_text(logged: Message, text: str) -> bool:
    ours = text_of(logged)
    return ours == text or (ours == "" and bool(logged.tool_calls) and _FILLER.fullmatch(text) is not None)


def _same_call(logged: ToolCall, sent: ToolCall, schema: Mapping[str, Any]) -> bool:
    if logged.name != sent.name or (logged.id and sent.id and logged.id != sent.id):
        return False
    ours, theirs = parse_arguments(logged.arguments), parse_arguments(sent.arguments)
    shared = ours.keys() & theirs.keys()
    alone = {**ours, **theirs}
    return all(_same_value(ours[key], theirs[key]) for key in shared) and all(
        _says_nothing(key, value, schema) for key, value in alone.items() if key not in shared
    )


def _says_nothing(key: str, value: object, schema: Mapping[str, Any]) -> bool:
    """Whether an argument may be written out or left out without a difference."""
    required = schema.get("required")
    if isinstance(required, list) and key in required:
        return False
    properties = schema.get("properties")
    declared = properties.get(key) if isinstance(properties, Mapping) else None
    if isinstance(declared, Mapping) and "default" in declared:
        return _same_value(value, declared["default"])
    return value is None or value is False


def _same_value(a: object, b: object) -> bool:
    """Equality as in JSON: the order of keys does not count, 1 is 1.0, and true is not 1."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same_value(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same_value, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _dump(arguments: object) -> str:
    return json.dumps(arguments, default=str)
