"""The agent's model as a `GenerationService` answers it: one append-only conversation with fixed settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sterna.chat.messages import ChatEvent, ChatRequest, Message, Tool
from sterna.llm import GenerationService
from sterna.types import SamplingParams


class ServiceModel:
    """Implements the agent's ``Model``: every turn is asked with the same sampling, seed and thinking switch.

    Noise depends on the absolute position, so one seed serves all turns. Reasoning of earlier turns stays in view.
    """

    def __init__(self, service: GenerationService, sampling: SamplingParams, *, enable_thinking: bool) -> None:
        self._service = service
        self._sampling = sampling
        self._enable_thinking = enable_thinking

    def respond(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[ChatEvent]:
        """Streams one assistant turn; closing the iterator aborts the generation."""
        request = ChatRequest(
            messages=tuple(messages),
            tools=tuple(tools),
            sampling=self._sampling,
            enable_thinking=self._enable_thinking,
            preserve_thinking=True,
        )
        return self._service.chat(request)
