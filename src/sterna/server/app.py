"""The routes, and the guard in front of them."""

from __future__ import annotations

import re
import time
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import sterna
from sterna.server import endpoints
from sterna.server.auth import Guard
from sterna.server.errors import StatusError
from sterna.server.handlers import error_response, protocol_of, refusing, service_of
from sterna.server.openapi import openapi
from sterna.server.responses_stream import ResponseStore
from sterna.server.service import Service
from sterna.server.sse import json_response

_SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]
# probes of a supervisor carry no key and learn nothing but that the server is up
_OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})


def make_app(service: Service, guard: Guard) -> Starlette:
    """The ASGI application around a service."""
    app = Starlette(routes=ROUTES, exception_handlers={404: _not_found, 405: _not_allowed})
    app.state.service = service
    app.state.started = int(time.time())
    app.state.responses = ResponseStore()
    app.state.running = {}
    app.add_middleware(_GuardMiddleware, guard=guard, service=service)
    return app


class _GuardMiddleware:
    def __init__(self, app: ASGIApp, *, guard: Guard, service: Service) -> None:
        self._app = app
        self._guard = guard
        self._service = service
        self._known = {route.path for route in ROUTES if "{" not in route.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": self._canonical(scope["path"])}
        status = 0

        async def counting_send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *_SECURITY_HEADERS]}
            await send(message)

        try:
            key = self._guard.check(Headers(scope=scope), needs_key=scope["path"] not in _OPEN_PATHS)
        except StatusError as error:
            await error_response(error, protocol_of(scope["path"]))(scope, receive, counting_send)
        else:
            scope["state"] = {**scope.get("state", {}), "key": key}
            await self._app(scope, receive, counting_send)
        finally:
            path = scope["path"] if scope["path"] in self._known else "other"
            self._service.metrics.request(path, status)

    def _canonical(self, path: str) -> str:
        """The path without doubled slashes, and with the ``/v1`` that some base URLs lack or repeat."""
        path = re.sub(r"/+", "/", path)
        path = re.sub(r"^/v1(?=/v1/)", "", path)
        return path if path in self._known or "/v1" + path not in self._known else "/v1" + path


async def _not_found(request: Request, error: Exception) -> Response:
    return error_response(StatusError(404, f"there is no {request.url.path[:200]}"), protocol_of(request.url.path))


async def _not_allowed(request: Request, error: Exception) -> Response:
    message = f"{request.url.path} does not take {request.method}"
    return error_response(StatusError(405, message), protocol_of(request.url.path))


def _model_json(request: Request) -> dict[str, Any]:
    service = service_of(request)
    return {
        "id": service.llm.name,
        "object": "model",
        "created": request.app.state.started,
        "owned_by": "sterna",
        "max_model_len": service.llm.max_model_len,
        # the same for clients of the other protocol
        "type": "model",
        "display_name": service.llm.name,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(request.app.state.started)),
    }


@refusing
async def _models(request: Request) -> Response:
    name = service_of(request).llm.name
    body = {"object": "list", "data": [_model_json(request)], "first_id": name, "last_id": name, "has_more": False}
    return json_response(body)


@refusing
async def _model(request: Request) -> Response:
    name, asked = service_of(request).llm.name, request.path_params["model"]
    if asked != name:
        raise StatusError(404, f"there is no model {asked[:200]!r}, this server has {name}")
    return json_response(_model_json(request))


@refusing
async def _live(request: Request) -> Response:
    return json_response({"status": "ok"})


@refusing
async def _ready(request: Request) -> Response:
    if service_of(request).draining:
        raise StatusError(503, "the server is shutting down")
    return json_response({"status": "ready", "version": sterna.__version__})


@refusing
async def _metrics(request: Request) -> Response:
    service = service_of(request)
    text = service.metrics.text(active=service.admission.active, waiting=service.admission.waiting)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


@refusing
async def _openapi(request: Request) -> Response:
    return json_response(openapi((route.path, sorted(route.methods or ())) for route in ROUTES))


ROUTES = [
    Route("/v1/chat/completions", endpoints.chat_completions, methods=["POST"]),
    Route("/v1/completions", endpoints.completions, methods=["POST"]),
    Route("/v1/responses", endpoints.responses, methods=["POST"]),
    Route("/v1/responses/input_tokens", endpoints.count_response_tokens, methods=["POST"]),
    Route("/v1/responses/{response}", endpoints.response, methods=["GET", "DELETE"]),
    Route("/v1/responses/{response}/cancel", endpoints.cancel_response, methods=["POST"]),
    Route("/v1/messages", endpoints.messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", endpoints.count_message_tokens, methods=["POST"]),
    Route("/v1/models", _models, methods=["GET"]),
    Route("/v1/models/{model:path}", _model, methods=["GET"]),
    Route("/health", _ready, methods=["GET"]),
    Route("/health/live", _live, methods=["GET"]),
    Route("/health/ready", _ready, methods=["GET"]),
    Route("/metrics", _metrics, methods=["GET"]),
    Route("/openapi.json", _openapi, methods=["GET"]),
]
