"""What a request may cost before it is understood: bytes, depth, headers, time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from sterna.server.errors import FieldError, StatusError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on requests; sizes in bytes, times in seconds.

    ``max_active`` generations run at once and ``max_waiting`` more may wait. ``keep_alive_s`` is the longest silence
    in a stream: clients give up after 120 s and the strictest of them do not count comments.
    """

    body_bytes: int = 64 * 2**20
    body_s: float = 60.0
    header_bytes: int = 64 * 2**10
    json_depth: int = 64
    send_s: float = 120.0
    keep_alive_s: float = 10.0
    max_active: int = 16
    max_waiting: int = 64
    max_choices: int = 8


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises:
        StatusError: the body is larger than allowed.
        FieldError: the body is not a JSON object, or is nested too deeply.
    """
    size = 0
    pieces = []
    async for piece in request.stream():
        size += len(piece)
        if size > limits.body_bytes:
            raise StatusError(413, f"the body is larger than {limits.body_bytes:,} bytes")
        pieces.append(piece)
    try:
        data = json.loads(b"".join(pieces), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FieldError("body", f"is not JSON: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise FieldError("body", f"is a {type(data).__name__}, allowed is a JSON object")
    if _depth_exceeds(data, limits.json_depth):
        raise FieldError("body", f"is nested more than {limits.json_depth} deep")
    return data


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _depth_exceeds(data: Any, depth: int) -> bool:
    level = [data]
    for _ in range(depth + 1):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
