"""What the server refuses, and how each protocol says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sterna.errors import (
    ContextOverflowError,
    OutOfMemoryError,
    SternaError,
    TemplateError,
    TokenizerError,
    UsageError,
)

Protocol = Literal["openai", "anthropic"]

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class FieldError(UsageError):
    """A field of a request with a value that is not allowed, or that cannot be honoured; ``param`` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


class PromptTooLongError(ContextOverflowError):
    """A prompt that leaves no room for an answer."""

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(f"prompt has {tokens:,} tokens, context is {context:,}")
        self.tokens = tokens
        self.context = context


class BusyError(SternaError):
    """The queue is full; ``retry_after`` seconds from now it may not be."""

    code = "busy"

    def __init__(self, waiting: int, *, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already, which is the limit")
        self.retry_after = retry_after


class StatusError(SternaError):
    """A refusal with an HTTP status of its own."""

    code = "refused"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error response: its HTTP status, JSON body and extra headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def refusal(error: BaseException, protocol: Protocol) -> Refusal:
    """The response for an error in the words that clients of the protocol act on.

    Both texts for a prompt that is too long are matched by clients, which then compact their conversation.
    """
    status = _status(error)
    message = _message(error, protocol)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if protocol == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        return Refusal(status, {"type": "error", "error": {"type": kind, "message": message}}, headers)
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code: str | None = None
    if isinstance(error, ContextOverflowError):
        code = "context_length_exceeded"
    elif isinstance(error, SternaError):
        code = error.code
    param = error.param if isinstance(error, FieldError) else None
    return Refusal(status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, headers)


def _status(error: BaseException) -> int:
    if isinstance(error, StatusError):
        return error.status
    if isinstance(error, BusyError | OutOfMemoryError):
        return 503
    refused = (UsageError, ContextOverflowError, TemplateError, TokenizerError)
    return 400 if isinstance(error, refused) else 500


def _message(error: BaseException, protocol: Protocol) -> str:
    if isinstance(error, PromptTooLongError):
        if protocol == "anthropic":
            # a prompt must leave room for one token, so the longest one is shorter than the context
            return f"prompt is too long: {error.tokens} tokens > {error.context - 1} maximum"
        return (
            f"This model's maximum context length is {error.context} tokens. However, your messages resulted in "
            f"{error.tokens} tokens. Please reduce the length of the messages."
        )
    if isinstance(error, SternaError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return "internal error, see the log of the server"
