"""``GET /openapi.json``: the routes, with what every request body needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import sterna

_MESSAGES = {"type": "array", "items": {"type": "object"}, "minItems": 1}
# path: (what it does, required properties)
_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/chat/completions": ("Answer a conversation", {"messages": _MESSAGES}),
    "/v1/completions": ("Continue a text", {"prompt": {"type": "string"}}),
    "/v1/responses": ("Answer a list of items", {"input": {"type": ["string", "array"]}}),
    "/v1/responses/input_tokens": ("Count the tokens of a prompt", {"input": {"type": ["string", "array"]}}),
    "/v1/messages": (
        "Answer a conversation",
        {"messages": _MESSAGES, "max_tokens": {"type": "integer", "minimum": 1}},
    ),
    "/v1/messages/count_tokens": ("Count the tokens of a prompt", {"messages": _MESSAGES}),
}


def openapi(routes: Iterable[tuple[str, Iterable[str]]]) -> dict[str, Any]:
    """The OpenAPI document of (path, methods) pairs."""
    paths: dict[str, Any] = {}
    for path, methods in routes:
        plain = re.sub(r"\{(\w+):\w+\}", r"{\1}", path)
        names = re.findall(r"\{(\w+)\}", plain)
        for method in methods:
            if method != "HEAD":
                paths.setdefault(plain, {})[method.lower()] = _operation(path, method, names)
    return {"openapi": "3.1.0", "info": {"title": "Sterna", "version": sterna.__version__}, "paths": paths}


def _operation(path: str, method: str, names: list[str]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "responses": {"200": {"description": "done"}, "default": {"description": "an error in its protocol's form"}}
    }
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if method == "POST" and path in _BODIES:
        summary, properties = _BODIES[path]
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        operation["summary"] = summary
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation
