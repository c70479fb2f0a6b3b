"""Picks a rung of the sandbox ladder."""

from __future__ import annotations

import os
from collections.abc import Callable

from sterna.agent.sandbox.base import Sandbox
from sterna.agent.sandbox.bubblewrap import Bubblewrap
from sterna.agent.sandbox.landlock import LandlockSeccomp
from sterna.agent.sandbox.none import NoSandbox
from sterna.errors import SandboxError, UsageError

_LADDER: dict[str, Callable[[], Sandbox]] = {"bubblewrap": Bubblewrap, "landlock": LandlockSeccomp}
RUNGS = (*_LADDER, "none")
VARIABLE = "STERNA_SANDBOX"


def choose_sandbox(rung: str | None = None) -> Sandbox:
    """The sandbox named ``rung``, or with ``None`` or ``"auto"`` the strongest that works here.

    ``none`` is only ever taken by name. The environment variable ``STERNA_SANDBOX`` stands in for a missing ``rung``.
    ``sandbox.notice`` is the line to print; for a weaker rung it ends with the reason why the stronger one was refused.

    Raises:
        SandboxError: the forced rung does not work here, or no rung does; the message has every reason.
        UsageError: there is no rung of that name.
    """
    wanted = rung or os.environ.get(VARIABLE) or "auto"
    if wanted == "none":
        return NoSandbox()
    if wanted in _LADDER:
        return _LADDER[wanted]()
    if wanted != "auto":
        raise UsageError(f"sandbox is {wanted!r}, allowed are auto, {', '.join(RUNGS)}")
    reasons: list[str] = []
    for make in _LADDER.values():
        try:
            sandbox = make()
        except SandboxError as error:
            reasons.append(error.message)
            continue
        if reasons:
            sandbox.notice += f" ({'; '.join(reasons)})"
        return sandbox
    raise SandboxError(
        f"no sandbox works here: {'; '.join(reasons)}",
        hint="run in a container or on a machine you can lose and choose `--sandbox none`, or install bubblewrap",
    )
