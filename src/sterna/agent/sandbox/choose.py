"""Picks a rung of the sandbox ladder."""

from __future__ import annotations

from sterna.agent.sandbox.base import Sandbox

RUNGS = ("bubblewrap", "landlock", "none")


def choose_sandbox(rung: str | None = None) -> Sandbox:
    """The sandbox named ``rung``, or with ``None`` or ``"auto"`` the strongest that works here.

    ``none`` is only ever taken by name. The environment variable ``STERNA_SANDBOX`` stands in for a missing ``rung``.
    ``sandbox.notice`` is the line to print.

    Raises:
        SandboxError: the forced rung does not work here, or no rung does; the message has every reason.
        UsageError: there is no rung of that name.
    """
    raise NotImplementedError
