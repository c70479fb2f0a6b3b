"""What a run of the agent reports while it happens, so that a terminal, a web page or a test can follow it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sterna.chat.messages import ChatEvent, ToolCall
from sterna.types import Usage


class Outcome(StrEnum):
    """Why a run ended. ``SUBMITTED`` and ``ANSWERED`` are the model's own choice, the others are not."""

    SUBMITTED = "submitted"
    ANSWERED = "answered"
    STEP_LIMIT = "step_limit"
    TIME_LIMIT = "time_limit"
    TOKEN_LIMIT = "token_limit"
    FORMAT_ERRORS = "format_errors"
    LENGTH = "length"
    CONTEXT_OVERFLOW = "context_overflow"
    INTERRUPTED = "interrupted"
    ERROR = "error"

    @property
    def by_choice(self) -> bool:
        """Whether the model ended the run itself."""
        return self in (Outcome.SUBMITTED, Outcome.ANSWERED)


@dataclass(frozen=True, slots=True)
class StepStarted:
    """The model is asked for turn ``step``, counted from 1 over the whole history."""

    step: int


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """One event of the model's stream, passed on unchanged; the last one of a step is an ``End``."""

    step: int
    event: ChatEvent


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool begins to work on ``call``."""

    step: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class Observation:
    """The text that the model will see as the result of ``call``; ``call`` is ``None`` after a malformed call."""

    step: int
    call: ToolCall | None
    text: str
    is_error: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over; ``detail`` is one line for people, ``usage`` sums the steps of this run."""

    outcome: Outcome
    detail: str
    steps: int
    usage: Usage
    duration_s: float


AgentEvent = StepStarted | ModelEvent | ToolStarted | Observation | Finished
