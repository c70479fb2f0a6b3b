"""The exceptions that speak to users.

    SternaError                  code="error"
    ├── UsageError               code="usage"            wrong flag, value or combination (exit code 2)
    ├── ConfigError              code="config"           a configuration file that we do not understand
    ├── CheckpointError          code="checkpoint"       missing, extra, damaged or wrongly shaped tensor or file
    ├── TokenizerError           code="tokenizer"        damaged tokenizer, text that is not valid Unicode
    ├── TemplateError            code="template"         a chat template that fails or exceeds its limits
    ├── ContextOverflowError     code="context_overflow" more tokens than the context holds
    ├── OutOfMemoryError         code="out_of_memory"    a plan that does not fit, refused before allocating
    ├── BackendError             code="backend"          a backend or kernel variant that cannot run here
    ├── SessionError             code="session"          a stored session that is damaged, foreign or not there
    ├── SandboxError             code="sandbox"          isolation that cannot be had here
    └── AgentError               code="agent"            a step, time or format limit of the agent

Every message says what happened with its values and what is allowed, in lower case and without a full stop; ``hint`` says what to do.
"""

from __future__ import annotations


class SternaError(Exception):
    """Base of all errors meant for the user; ``hint`` is printed on its own line after the message."""

    code = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SternaError):
    """A wrong flag, value or combination of them."""

    code = "usage"


class ConfigError(SternaError):
    """A configuration file with an unknown key, a missing key or an impossible value."""

    code = "config"


class CheckpointError(SternaError):
    """A missing, extra, damaged or wrongly shaped tensor or file."""

    code = "checkpoint"


class TokenizerError(SternaError):
    """A damaged tokenizer file, or text that is not valid Unicode."""

    code = "tokenizer"


class TemplateError(SternaError):
    """A chat template that raises, or exceeds its limits of time or size."""

    code = "template"


class ContextOverflowError(SternaError):
    """More tokens than the context holds."""

    code = "context_overflow"


class OutOfMemoryError(SternaError):
    """A plan that does not fit; raised before anything is allocated."""

    code = "out_of_memory"


class BackendError(SternaError):
    """A backend or kernel variant that cannot run on this machine."""

    code = "backend"


class SessionError(SternaError):
    """A stored session that is damaged, of another model or version, or not there."""

    code = "session"


class SandboxError(SternaError):
    """Isolation that cannot be had on this machine."""

    code = "sandbox"


class AgentError(SternaError):
    """A step, time or format limit of the agent was reached."""

    code = "agent"
