"""The process between the host and a command without namespaces; started as a script, imports nothing of Sterna.

    python -I -S launcher.py POLICY COMMAND [ARGUMENT …]

POLICY is a JSON object: ``landlock`` (see ``landlock.py``) and ``seccomp`` (a filter in hexadecimal), both optional.
The launcher stays outside the restrictions, adopts every process that the command leaves behind, and kills them all
when the command ends, at SIGTERM, and when the host process dies. Its exit code is the command's, 125 if it could not
be started.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 22, 24, 28
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
# NOROOT, NO_SETUID_FIXUP and their locks: uid 0 is then a user like any other.
_SECURE_BITS = 0b1111
_CANNOT_START = 125

_libc = ctypes.CDLL(None, use_errno=True)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, *arguments: int, what: str) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(option, *padded), what)


def _drop_capabilities() -> None:
    """Takes root's powers away for good; the files that root owns remain its own."""
    if os.geteuid() == 0:
        _prctl(_PR_SET_SECUREBITS, _SECURE_BITS, what="secure bits")
        for capability in range(64):
            if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
                break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.syscall(_CAPSET[os.uname().machine], header, (ctypes.c_uint32 * 6)()), "dropping capabilities")


def _apply_landlock(policy: dict[str, Any]) -> None:
    attributes = (ctypes.c_uint64 * len(policy["handled"]))(*policy["handled"])
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, size, 0), "Landlock ruleset")
    for path, access in policy["rules"]:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _PathBeneath(allowed_access=access, parent_fd=fd)
        _check(_libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0), f"Landlock rule for {path}")
        os.close(fd)
    _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _apply_seccomp(code: bytes) -> None:
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _FilterProgram(length=len(code) // 8, filter=ctypes.cast(buffer, ctypes.c_void_p))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _become_command(policy: dict[str, Any], command: list[str]) -> None:
    """Restricts this process and replaces it by ``command``; returns only by an exception."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, what="death signal")
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if policy:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, what="no new privileges")
        _drop_capabilities()
    if "landlock" in policy:
        _apply_landlock(policy["landlock"])
    if "seccomp" in policy:
        _apply_seccomp(bytes.fromhex(policy["seccomp"]))
    os.execvp(command[0], command)


def _descendants() -> set[int]:
    """Every living process below this one."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] not in (b"Z", b"X"):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: set[int] = set()
    pending = [os.getpid()]
    while pending:
        new = children.get(pending.pop(), [])
        found.update(new)
        pending += new
    return found


def _signal_all(processes: set[int], number: int) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def _end_all() -> None:
    """Kills the whole tree. Processes are stopped first, so that none forks while the others are being killed."""
    while True:
        stopped: set[int] = set()
        while new := _descendants() - stopped:
            _signal_all(new, signal.SIGSTOP)
            stopped |= new
        _signal_all(stopped, signal.SIGKILL)
        try:
            while os.waitpid(-1, 0):
                pass
        except ChildProcessError:
            return


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    policy, command = json.loads(arguments[0]), arguments[1:]
    host = os.getppid()

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, what="death signal")
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, what="subreaper")
    if os.getppid() != host:
        return _CANNOT_START
    try:
        child = os.fork()
        if child == 0:
            try:
                _become_command(policy, command)
            except BaseException as error:
                os.write(2, f"sandbox: {error}\n".encode())
            os._exit(_CANNOT_START)
        _, status = os.waitpid(child, 0)
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_all()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
