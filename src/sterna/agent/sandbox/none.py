"""No sandbox at all, for those who ask for it by name (in a container or a throw-away machine)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sterna.agent.sandbox.base import Launch, Limits
from sterna.agent.sandbox.launcher_call import launcher_argv
from sterna.agent.sandbox.paths import minimal_environment

_INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ")


class NoSandbox:
    """Runs commands as the user, with the network and every file. Only time, output and resources are limited."""

    name = "none"
    notice = "sandbox: none: commands run as you, with the network and all your files"

    def launch(self, inner: Sequence[str], *, workspace: Path, scratch: Path, limits: Limits) -> Launch:
        """How to run ``inner``; variables other than the usual ones are not passed on."""
        environment = minimal_environment(home=str(scratch / "home"), temporary=str(scratch))
        environment |= {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return launcher_argv(inner, policy={}, environment=environment, workspace=workspace)
