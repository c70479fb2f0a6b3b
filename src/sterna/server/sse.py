"""Server-sent events: the wire form, and a stream that is never silent for long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Protocol

from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sterna.chat.messages import ChatEvent
from sterna.server.limits import Limits
from sterna.server.service import Generation

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def dumps(value: Any) -> bytes:
    """JSON as UTF-8; a lone surrogate, which a request can smuggle in by an escape, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")


def data(value: Any) -> bytes:
    """An event without a name."""
    return b"data: " + dumps(value) + b"\n\n"


def named(value: dict[str, Any]) -> bytes:
    """An event that is named as its ``type``."""
    return b"event: " + str(value["type"]).encode() + b"\n" + data(value)


def json_response(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(dumps(value), status_code=status, headers=headers, media_type="application/json")


class Renderer(Protocol):
    """One answer in the events of one protocol."""

    def start(self) -> Iterable[bytes]:
        """What is sent before the model has said anything."""

    def feed(self, index: int, event: ChatEvent) -> Iterable[bytes]:
        """What an event of choice ``index`` becomes."""

    def keep_alive(self) -> bytes:
        """Real data that says nothing."""

    def end(self) -> Iterable[bytes]:
        """What follows the last event."""


def event_stream(
    generation: Generation, renderer: Renderer, limits: Limits, *, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """The response; a client that leaves or stops reading cancels the generation, an error cuts the connection.

    Several clients die of an error object inside a stream and all of them retry after a cut.
    """
    return _EventStream(generation, renderer, limits, {**HEADERS, **(headers or {})})


class _EventStream(StreamingResponse):
    def __init__(self, generation: Generation, renderer: Renderer, limits: Limits, headers: dict[str, str]) -> None:
        pieces = _pieces(generation, renderer, limits.keep_alive_s)
        super().__init__(pieces, media_type="text/event-stream", headers=headers)
        self._generation = generation
        self._send_s = limits.send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._send_s):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        finally:
            # a task that is cancelled while it sends leaves the iterator suspended, not closed
            self._generation.close()


async def _pieces(generation: Generation, renderer: Renderer, keep_alive_s: float) -> AsyncIterator[bytes]:
    try:
        for piece in renderer.start():
            yield piece
        while not generation.done:
            item = await generation.next(timeout_s=keep_alive_s)
            if item is None:
                yield renderer.keep_alive()
                continue
            pieces = b"".join(renderer.feed(*item))
            if pieces:
                yield pieces
        for piece in renderer.end():
            yield piece
    finally:
        generation.close()
