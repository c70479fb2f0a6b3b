"""A `GenerationService` in place of a loaded model, so that commands can be tested without weights."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Self

from sterna.chat.messages import ChatEvent, ChatRequest
from sterna.types import SamplingParams
from support.scripted_model import ScriptedModel, Turn


class ScriptedLLM:
    """Answers `chat` with the turns of a `ScriptedModel` and remembers the requests."""

    name = "scripted"
    max_model_len = 1000

    def __init__(self, *turns: Turn) -> None:
        self.model = ScriptedModel(*turns)
        self.requests: list[ChatRequest] = []
        self.backend = SimpleNamespace(name="scripted", fingerprint=lambda: "none")

    def chat(self, request: ChatRequest) -> Iterator[ChatEvent]:
        """The next turn."""
        self.requests.append(request)
        return self.model.respond(request.messages, request.tools)

    def complete(self, text: str, sampling: SamplingParams) -> Iterator[str]:
        """The text backwards."""
        yield text[::-1]

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
