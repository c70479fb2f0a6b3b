"""The weaker rung, for machines that refuse user namespaces: Landlock for files, seccomp for everything else.

It holds: no writes outside the workspace and a private temporary directory, no reads of homes and credentials, no
sockets, no signals to other processes. It does not hold: other processes can be listed, file names and sizes outside
can be asked for, and all of the workspace is writable, ``.git/hooks`` included. What cannot be held is taken away: a
command has no sockets at all, no System V IPC and no /dev/shm, changes no owners, and changes modes and times through
the launcher, which does so in writable places only.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sterna.agent.sandbox.base import Launch, Limits
from sterna.agent.sandbox.launcher_call import launcher_argv
from sterna.agent.sandbox.paths import minimal_environment, public_paths, python_paths
from sterna.agent.sandbox.seccomp import build_filter, supervised_numbers
from sterna.errors import SandboxError

# Before ABI 3 (Linux 6.2) truncation was not covered: any readable file of the user could be emptied.
_MIN_ABI = 3
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 13, 1 << 14, 1 << 15
_ALL_ABI_3 = (1 << 15) - 1
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_PROBE_S = 10.0


def landlock_abi() -> int:
    """The version of Landlock in this kernel; 0 when it is absent or switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(444, None, ctypes.c_size_t(0), 1)))


class LandlockSeccomp:
    """Runs each command as the same user under Landlock, seccomp and no new privileges, without capabilities.

    Raises:
        SandboxError: the kernel lacks what is needed.
    """

    name = "landlock"

    def __init__(self) -> None:
        self._abi = landlock_abi()
        if self._abi < _MIN_ABI:
            raise SandboxError(
                f"Landlock ABI of this kernel is {self._abi}, needed is {_MIN_ABI} or newer",
                hint="use Linux 6.2 or newer with `landlock` among its security modules",
            )
        self._filter = build_filter().hex()
        self._public = public_paths()
        self._probe()
        signals = "" if self._abi >= 6 else ", may signal your processes"
        self.notice = (
            "sandbox: Landlock + seccomp (WEAKER than bubblewrap: sees other processes and file names"
            f"{signals}): no sockets, no writes outside the workspace"
        )

    def launch(self, inner: Sequence[str], *, workspace: Path, scratch: Path, limits: Limits) -> Launch:
        """How to run ``inner`` under the restrictions; ``scratch`` is the temporary directory and holds the home."""
        policy = self._policy(workspace, scratch)
        environment = minimal_environment(home=str(scratch / "home"), temporary=str(scratch))
        return launcher_argv(inner, policy=policy, environment=environment, workspace=workspace)

    def _policy(self, workspace: Path, scratch: Path) -> dict[str, Any]:
        return {
            "landlock": self._rules(workspace, scratch),
            "seccomp": self._filter,
            "supervised": supervised_numbers(),
            "writable": [str(workspace), str(scratch)],
        }

    def _rules(self, workspace: Path, scratch: Path) -> dict[str, Any]:
        everything = _ALL_ABI_3 | (_IOCTL_DEV if self._abi >= 5 else 0)
        rules = [(path, _READ) for path in (*self._public, *python_paths(workspace))]
        rules += [(Path("/proc"), _READ_FILE | _READ_DIR)]
        rules += [(Path(device), _READ_FILE | _WRITE_FILE) for device in _DEVICES]
        rules += [(path, everything & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)) for path in (workspace, scratch)]
        handled = [everything, *([_BIND_AND_CONNECT_TCP] if self._abi >= 4 else [])]
        handled += [_ABSTRACT_SOCKETS_AND_SIGNALS] if self._abi >= 6 else []
        present = [(path, access) for path, access in rules if path.exists()]
        return {
            "handled": handled,
            "rules": [(str(path), access if path.is_dir() else access & _FILE_ONLY) for path, access in present],
        }

    def _probe(self) -> None:
        """A trial run; its failure is the reason for refusing this rung."""
        policy = self._policy(Path("/nonexistent"), Path("/nonexistent"))
        launch = launcher_argv(["/bin/sh", "-c", "exit 42"], policy=policy, environment={}, workspace=Path("/"))
        try:
            trial = subprocess.run(launch.argv, env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxError(f"Landlock does not work here: {error}") from error
        if trial.returncode != 42:
            reason = trial.stderr.decode(errors="replace").strip() or f"a trial ended with {trial.returncode}"
            raise SandboxError(f"Landlock does not work here: {reason}")
