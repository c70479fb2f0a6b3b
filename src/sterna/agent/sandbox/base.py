"""What every rung of the sandbox ladder has in common."""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sterna.errors import SandboxError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one command. Memory, file size and CPU time hold per process, as the kernel counts them."""

    processes: int = 512
    memory_bytes: int = 4 * GIB
    file_bytes: int = 1 * GIB
    cpu_s: int = 3_600
    temporary_bytes: int = 1 * GIB
    output_chars: int = 16_000
    output_bytes: int = 1 * GIB


@dataclass(frozen=True, slots=True)
class Launch:
    """How the host starts one sandboxed command. ``stop_signal`` makes ``argv`` end with everything it started."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    stop_signal: signal.Signals = signal.SIGKILL


class Sandbox(Protocol):
    """One rung of the ladder. ``name`` is what forces it, ``notice`` the line shown to the user."""

    name: str
    notice: str

    def launch(self, inner: Sequence[str], *, workspace: Path, scratch: Path, limits: Limits) -> Launch:
        """How to run ``inner`` (a bash command line) with ``workspace`` and ``scratch`` as the only writable places."""


def check_workspace(workspace: Path) -> Path:
    """The real path of ``workspace``; refuses what cannot be handed to an agent: the system's and whole homes.

    Raises:
        SandboxError: not a directory, or a directory that holds more than one project.
    """
    try:
        real = workspace.resolve(strict=True)
    except OSError as error:
        raise SandboxError(f"workspace {workspace} cannot be opened: {error.strerror}") from error
    if not real.is_dir():
        raise SandboxError(f"workspace {real} is not a directory")
    home = home_directory()
    shared = {"/", "/home", "/root", "/tmp", "/run", "/var", "/var/tmp", "/opt", "/mnt", "/media", "/srv", str(home)}
    system = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/dev", "/proc", "/sys", "/boot")
    inside_system = any(real == Path(root) or real.is_relative_to(root) for root in system)
    if str(real) in shared or inside_system or home.is_relative_to(real):
        raise SandboxError(
            f"workspace is {real}, allowed is a project directory, not a whole home or a part of the system",
            hint="start in the directory of one project",
        )
    return real


def home_directory() -> Path:
    """The home directory of the user who runs this process, as the system's user database has it."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir).resolve()
    except KeyError:
        return Path(os.environ.get("HOME", "/nonexistent")).resolve()
