"""The shell line around the agent's command: limits, working directory, and where the command left it."""

from __future__ import annotations

import math
import os
from typing import Self

from sterna.agent.sandbox.base import Limits

# One line, so that the line numbers in the shell's own messages are those of the agent's command.
_PROLOGUE = (
    "trap 'pwd >&{fd}' EXIT; {limits}; "
    'cd -- "$1" 2>/dev/null || echo "[working directory $1 is gone, back in $PWD]"; '
    'sterna_command=$2; set --; eval "$sterna_command"'
)


def shell_argv(command: str, *, cwd: str, limits: Limits, cwd_fd: int) -> list[str]:
    """The bash call that runs ``command`` in ``cwd`` under ``limits`` and reports its last directory on ``cwd_fd``."""
    ulimits = (
        f"ulimit -c 0 -f {math.ceil(limits.file_bytes / 1024)} -t {limits.cpu_s} "
        f"-d {math.ceil(limits.memory_bytes / 1024)} -u {limits.processes}"
    )
    return ["bash", "-c", _PROLOGUE.format(fd=cwd_fd, limits=ulimits), "bash", cwd, command]


class CwdPipe:
    """A pipe on which the shell reports its last working directory."""

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)

    def read(self) -> str | None:
        """The reported directory, or ``None`` when there is no usable report. Never blocks."""
        try:
            data = os.read(self._read_fd, 8192)
        except BlockingIOError:
            return None
        path = data.decode("utf-8", errors="surrogateescape").rstrip("\n")
        return path if path.startswith("/") and "\n" not in path and "\0" not in path else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._read_fd)
        os.close(self.write_fd)
