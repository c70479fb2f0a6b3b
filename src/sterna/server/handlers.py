"""From an HTTP request to a response: reading, starting, streaming or collecting, refusing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sterna.chat.messages import ChatEvent
from sterna.errors import SternaError
from sterna.server.errors import Protocol, StatusError, refusal
from sterna.server.limits import read_json
from sterna.server.service import Generation, Service
from sterna.server.sse import json_response

LOGGER = logging.getLogger("sterna.server")
Handler = Callable[[Request], Awaitable[Response]]


class ClientGoneError(Exception):
    """The client closed the connection before its answer was complete."""


def protocol_of(path: str) -> Protocol:
    """Which form of error a path's clients read."""
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def error_response(error: BaseException, protocol: Protocol) -> Response:
    """The refusal of an error; an unexpected one is logged and says nothing about itself."""
    if not isinstance(error, SternaError):
        LOGGER.error("request failed", exc_info=error)
    found = refusal(error, protocol)
    return json_response(found.body, status=found.status, headers=found.headers)


def refusing(handler: Handler) -> Handler:
    """The handler with errors turned into responses of its protocol."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGoneError:
            return Response(status_code=499)
        except Exception as error:
            return error_response(error, protocol_of(request.url.path))

    return handle


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    service: Service = request.app.state.service
    return service


def key_of(request: Request) -> str:
    """The name of the key that the guard found."""
    name: str = request.scope["state"]["key"]
    return name


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON body within the limits.

    Raises:
        StatusError: too large, too slow, or the server is shutting down.
        FieldError: not a JSON object.
    """
    service = service_of(request)
    if service.draining:
        raise StatusError(503, "the server is shutting down")
    try:
        return await asyncio.wait_for(read_json(request, service.limits), service.limits.body_s)
    except TimeoutError:
        raise StatusError(408, "the body took too long") from None


async def collect(request: Request, generation: Generation, feed: Callable[[int, ChatEvent], None]) -> None:
    """Feed every event; a client that leaves cancels the generation and raises `ClientGoneError`."""
    gone = asyncio.create_task(_wait_until_gone(request))
    try:
        while not generation.done:
            item = asyncio.create_task(generation.next())
            await asyncio.wait({item, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not item.done():
                item.cancel()
                raise ClientGoneError
            found = item.result()
            if found is not None:
                feed(*found)
    finally:
        gone.cancel()
        generation.close()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
