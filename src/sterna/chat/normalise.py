"""Makes any reasonable request acceptable to the checkpoint's template, without moving or losing anything.

Templates of this family raise on a second system message, on ``developer``, on arguments given as JSON text, on a
conversation without a user message, and print a leading tool result without its header. What is decided here: which
role a turn plays, what its content is, whether it counts as a query, where reasoning ends. ``template`` then carries
it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sterna.chat.messages import ChatRequest, Message, Tool
from sterna.chat.sentinels import TOOL_RESPONSE
from sterna.errors import UsageError

THINK_START, THINK_END = "<think>", "</think>"
Continuation = Literal["", "content", "reasoning"]

_TEXT_KINDS = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text"})
_MEDIA_KINDS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_url", "input_image"),
    "video": ("video", "video_url", "input_video"),
}
_ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a video among the text; ``part`` is the part as it came."""

    kind: Literal["image", "video"]
    part: Mapping[str, Any]


Part = str | Media


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn that the template can print, perhaps in disguise.

    ``is_exact`` content is printed with its outer white space. ``late_system`` turns go in as a user's and come out
    as the system's; a ``filler`` is a user turn that is cut out again; ``is_query`` tells whether it counts as the
    user's last question, which decides what reasoning is kept.
    """

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...] = ()
    reasoning: str | None = None
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    token_ids: tuple[int, ...] | None = None
    is_exact: bool = False
    late_system: bool = False
    filler: bool = False
    is_query: bool = True
    leave_open: Continuation = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The turns and switches that a template is run with."""

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    enable_thinking: bool = True
    preserve_thinking: bool = True
    add_generation_prompt: bool = True
    media: tuple[Mapping[str, Any], ...] = field(default=())


def normalise(request: ChatRequest) -> Conversation:
    """The conversation of a request.

    Leading system and developer messages become one; later ones stay in place. A last assistant message without tool
    calls is left open, so that the answer continues it.

    Raises:
        UsageError: an unknown role, or a content part that is neither text, image nor video.
    """
    turns = [as_turn(message) for message in request.messages]
    lead = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    late = [replace(turn, late_system=True) if turn.role == "system" else turn for turn in turns[lead:]]
    late = _with_open_end(late, continuation_of(request))
    has_query = any(turn.role == "user" and turn.is_query for turn in late)
    if not has_query or late[0].role == "tool":
        late = [Turn(role="user", filler=True, is_query=not has_query), *late]
    turns = [*_joined_system(turns[:lead]), *late]
    return Conversation(
        turns=tuple(turns),
        tools=request.tools,
        enable_thinking=request.enable_thinking,
        preserve_thinking=request.preserve_thinking,
        add_generation_prompt=not continuation_of(request),
        media=tuple(part.part for turn in turns for part in turn.parts if isinstance(part, Media)),
    )


def continuation_of(request: ChatRequest) -> Continuation:
    """Which part of a last assistant message the answer continues; empty when the answer is a turn of its own."""
    last = request.messages[-1] if request.messages else None
    if last is None or last.role != "assistant" or last.tool_calls:
        return ""
    turn = as_turn(last)
    if _has_content(turn.parts):
        return "content"
    if turn.reasoning and turn.reasoning.strip():
        return "reasoning" if request.enable_thinking else "content"
    return ""


def parse_arguments(value: object) -> dict[str, Any]:
    """Arguments of a tool call from whatever a client sends: a mapping, JSON text of one, nothing, or damaged text.

    What is no mapping is kept under the name ``arguments``, so that the model still sees what it wrote. Never raises.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return {}
        try:
            value = json.loads(text)
            # Some clients encode twice.
            value = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            return {"arguments": text}
    if value is None:
        return {}
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {"arguments": value}


def content_parts(content: str | Mapping[str, Any] | Sequence[Any] | None) -> tuple[Part, ...]:
    """Text and media of a message's content; neighbouring texts are joined.

    Raises:
        UsageError: a part that is neither text, image nor video.
    """
    if content is None:
        return ()
    items: Iterable[Any] = [content] if isinstance(content, str | Mapping) else content
    parts: list[Part] = []
    for item in items:
        part = _part(item)
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def _part(item: object) -> Part:
    if item is None or isinstance(item, str):
        return item or ""
    if not isinstance(item, Mapping):
        raise UsageError(f"content part is a {type(item).__name__}, allowed are text, image and video parts")
    kind = item.get("type")
    if kind not in _TEXT_KINDS:
        for media, names in _MEDIA_KINDS.items():
            if kind in names or any(name in item for name in names[:2]):
                return Media("image" if media == "image" else "video", item)
    text = item.get("refusal") if kind == "refusal" else item.get("text")
    if isinstance(text, str):
        return text
    if text is None and (kind in _TEXT_KINDS or "text" in item):
        return ""
    raise UsageError(f"content part of type {kind!r} is not supported, allowed are text, image and video")


def as_turn(message: Message) -> Turn:
    """The turn of one message, before its place in the conversation is known.

    Raises:
        UsageError: as ``normalise``.
    """
    role = _ROLES.get(message.role)
    if role is None:
        raise UsageError(f"unknown role {message.role!r}, allowed are {', '.join(_ROLES)}")
    parts = content_parts(message.content)
    if role == "system":
        return Turn(role="system", parts=parts)
    if role == "tool":
        return Turn(role="tool", parts=parts)
    if role == "user":
        return Turn(role="user", parts=parts, is_query=not is_tool_response(parts))
    reasoning, is_exact = message.reasoning, False
    if reasoning is None:
        reasoning, parts = _split_reasoning(parts)
        is_exact = reasoning is not None
    return Turn(
        role="assistant",
        parts=parts,
        reasoning=reasoning,
        calls=tuple((str(call.name), parse_arguments(call.arguments)) for call in message.tool_calls),
        token_ids=message.token_ids,
        is_exact=is_exact,
    )


def is_tool_response(parts: Sequence[Part]) -> bool:
    """Whether a user's content is a tool result in the template's wrapping, which does not count as a question."""
    if not parts or not isinstance(parts[0], str) or not isinstance(parts[-1], str):
        return False
    return parts[0].lstrip().startswith(TOOL_RESPONSE[0]) and parts[-1].rstrip().endswith(TOOL_RESPONSE[1])


def _split_reasoning(parts: tuple[Part, ...]) -> tuple[str | None, tuple[Part, ...]]:
    """Reasoning that a client sent inside the content, found by the official template's own rule."""
    text = parts[0] if len(parts) == 1 else None
    if not isinstance(text, str) or THINK_END not in text:
        return None, parts
    pieces = text.strip().split(THINK_END)
    reasoning = pieces[0].rstrip("\n").split(THINK_START)[-1].lstrip("\n")
    return reasoning, (pieces[-1].lstrip("\n"),)


def _has_content(parts: Iterable[Part]) -> bool:
    return any(isinstance(part, Media) or part.strip() for part in parts)


def _joined_system(turns: list[Turn]) -> list[Turn]:
    """Leading system turns as one, a blank line between them."""
    if len(turns) < 2:
        return turns
    parts: list[Part] = []
    for turn in turns:
        if not _has_content(turn.parts):
            continue
        stripped = strip_parts(turn.parts)
        parts = [*parts, "\n\n", *stripped] if parts else list(stripped)
    return [Turn(role="system", parts=content_parts(_as_items(parts)))]


def strip_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts without white space at the two ends."""
    result = list(parts)
    if result and isinstance(result[0], str):
        result[0] = result[0].lstrip()
    if result and isinstance(result[-1], str):
        result[-1] = result[-1].rstrip()
    return tuple(result)


def _as_items(parts: Iterable[Part]) -> list[Any]:
    return [part.part if isinstance(part, Media) else part for part in parts]


def _with_open_end(turns: list[Turn], continuation: Continuation) -> list[Turn]:
    """The turns with the last one left open, or dropped when it is an assistant's and says nothing at all."""
    if not turns or turns[-1].role != "assistant":
        return turns
    if continuation:
        return [*turns[:-1], replace(turns[-1], leave_open=continuation)]
    return turns if turns[-1].calls else turns[:-1]
