"""The agent: one linear, append-only history that is exactly what the model saw, and three tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sterna.agent.environment import CommandRunner
from sterna.agent.events import AgentEvent
from sterna.chat.messages import ChatEvent, Message, Tool


class Model(Protocol):
    """Whoever answers: the local service, a server over HTTP, or a script in a test."""

    def respond(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[ChatEvent]:
        """Streams one assistant turn; the last event is ``End``. Closing the iterator aborts the generation."""


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Limits of one run. ``completion_tokens`` counts what the model wrote; ``format_errors`` counts turns in a row."""

    steps: int = 250
    wall_s: float = 3_600.0
    completion_tokens: int = 1_000_000
    format_errors: int = 5
    command_timeout_s: float = 120.0


class Agent:
    """A model at work in an environment.

    ``run(task)`` may be called again with the next request of the user: the history goes on. ``settings`` are recorded
    in the trajectory (model name, sampling, …) and not read. ``trajectory_path`` is written after every step.
    """

    def __init__(
        self,
        model: Model,
        environment: CommandRunner,
        *,
        limits: AgentLimits | None = None,
        trajectory_path: Path | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        raise NotImplementedError

    def run(self, task: str) -> Iterator[AgentEvent]:
        """Works on ``task``; yields events as they happen, the last one is ``Finished``. Never raises for a limit."""
        raise NotImplementedError
