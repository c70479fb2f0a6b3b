"""Where the agent's commands run: one workspace, one sandbox, a fresh shell per command.

with Environment(Path("project")) as environment:
    result = environment.run("python -m unittest", timeout_s=60)
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from sterna.agent.process import run_process
from sterna.agent.sandbox import Limits, Sandbox, check_workspace, choose_sandbox
from sterna.agent.sandbox.paths import needs_python_link
from sterna.agent.shell import CwdPipe, shell_argv


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command printed and how it ended.

    ``output`` is standard output and standard error together, already shortened to the head and the tail;
    ``truncated_chars`` were left out between them. ``exit_code`` is 137 when the command was killed from outside,
    and ``note`` then says why (``timed_out`` says so for the time-out).
    """

    output: str
    exit_code: int
    timed_out: bool = False
    truncated_chars: int = 0
    note: str | None = None
    duration_s: float = 0.0


class CommandRunner(Protocol):
    """What the tools need of an environment; tests and replays may give their own."""

    @property
    def workspace(self) -> Path:
        """The directory to work in."""

    @property
    def sandbox_name(self) -> str:
        """What isolates the commands, for the record."""

    def run(self, command: str, *, timeout_s: float) -> CommandResult:
        """Runs ``command`` in a shell."""


class Environment:
    """Runs commands for the agent inside a sandbox; the workspace and a private /tmp are all that persists.

    ``sandbox`` defaults to the strongest one that works here (``choose_sandbox``). The working directory starts as
    the workspace and follows ``cd`` from one command to the next, variables do not. Not thread-safe.
    """

    def __init__(self, workspace: Path, *, sandbox: Sandbox | None = None, limits: Limits | None = None) -> None:
        self._workspace = check_workspace(workspace)
        self.sandbox = sandbox if sandbox is not None else choose_sandbox()
        self.limits = limits if limits is not None else Limits()
        self.cwd = str(self._workspace)
        self._scratch = Path(tempfile.mkdtemp(prefix="sterna-scratch-"))
        (self._scratch / "home").mkdir()
        if needs_python_link():
            (self._scratch / "bin").mkdir()
            (self._scratch / "bin" / "python").symlink_to(sys.executable)
        self._cleanup = weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)

    @property
    def workspace(self) -> Path:
        """The real path of the directory to work in."""
        return self._workspace

    @property
    def sandbox_name(self) -> str:
        """The rung of the ladder in use."""
        return self.sandbox.name

    def run(self, command: str, *, timeout_s: float) -> CommandResult:
        """Runs ``command`` in bash; everything it started is dead when this returns.

        Raises:
            SandboxError: the sandbox itself could not be started.
        """
        with CwdPipe() as pipe:
            inner = shell_argv(command, cwd=self.cwd, limits=self.limits, cwd_fd=pipe.write_fd)
            launch = self.sandbox.launch(inner, workspace=self.workspace, scratch=self._scratch, limits=self.limits)
            end = run_process(launch, timeout_s=timeout_s, limits=self.limits, pass_fds=(pipe.write_fd,))
            self.cwd = pipe.read() or self.cwd
        return CommandResult(
            output=end.output,
            exit_code=end.exit_code,
            timed_out=end.timed_out,
            truncated_chars=end.left_out_chars,
            note=end.note,
            duration_s=end.duration_s,
        )

    def close(self) -> None:
        """Removes the private temporary directory."""
        self._cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
