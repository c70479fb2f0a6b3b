"""The wire-free chat request and the events that answer it. Protocols parse into the one and render from the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sterna.types import FinishReason, SamplingParams, Usage

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one tool. ``arguments`` is the decoded mapping, already coerced to the tool's JSON schema."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``content`` is text or a list of parts (``{"type": "text", "text": …}``, ``{"type": "image", …}``, …).

    ``reasoning`` is ``None`` when the turn has none on record, which is not the same as an empty one.
    ``token_ids`` of an assistant turn are the sampled tokens, kept so that the turn is never re-tokenised.
    """

    role: Role
    content: str | Sequence[Mapping[str, Any]] | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool the model may call; ``parameters`` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The object that the chat template prints."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": dict(self.parameters)},
        }


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Everything that decides an answer, free of any protocol."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    enable_thinking: bool = True
    preserve_thinking: bool = True


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the reasoning text."""

    text: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call whose name is known; ``index`` counts the calls of this turn from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArgumentsDelta:
    """A piece of the call's arguments as JSON text; all pieces of one index joined are one valid JSON object."""

    index: int
    json: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A complete call with decoded and coerced arguments."""

    index: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolCallError:
    """A malformed call: ``raw`` as generated and ``message`` for the model, so that it can repair it.

    ``id`` is the id of the ``ToolCallStart`` before it, or a new one where the call never got as far as its name.
    """

    index: int
    raw: str
    message: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The end of the turn; ``message`` is the whole assistant turn, ready to be appended to the history."""

    finish_reason: FinishReason
    message: Message
    usage: Usage = field(default_factory=Usage)


ChatEvent = ReasoningDelta | TextDelta | ToolCallStart | ToolCallArgumentsDelta | ToolCallEnd | ToolCallError | End
