"""How the host starts ``launcher.py``."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sterna.agent.sandbox.base import Launch

_LAUNCHER = str(Path(__file__).with_name("launcher.py"))


def launcher_argv(
    inner: Sequence[str], *, policy: Mapping[str, Any], environment: dict[str, str], workspace: Path
) -> Launch:
    """The launch of ``inner`` under ``policy``. SIGTERM makes the launcher end the whole process tree."""
    argv = [sys.executable, "-I", "-S", _LAUNCHER, json.dumps({"host": os.getpid(), **policy}), *inner]
    return Launch(argv=argv, env=environment, cwd=str(workspace), stop_signal=signal.SIGTERM)
