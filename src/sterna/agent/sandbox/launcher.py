"""The process between the host and a command without namespaces; started as a script, imports nothing of Sterna.

    python -I -S launcher.py POLICY COMMAND [ARGUMENT …]

POLICY is a JSON object: ``host`` (the caller's process id) and, where the command is to be restricted, ``landlock``
(see ``landlock.py``), ``seccomp`` (a filter in hexadecimal), ``supervised`` (numbers of the calls that the filter hands
to the launcher) and ``writable`` (the places where it carries them out).
The launcher stays outside the restrictions, adopts every process that the command leaves behind, and kills them all
when the command ends, at SIGTERM, and when the host process dies. Its exit code is the command's, 125 if it could not
be started.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Any

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 24, 28
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER, _SECCOMP_NEW_LISTENER = 1, 8
_NOTIFICATION_RECEIVE, _NOTIFICATION_SEND, _NOTIFICATION_IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH, _PATH_MAX = -100, 0x100, 0x1000, 4096
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


def _apply_seccomp(code: bytes) -> int:
    """Installs the filter and returns the descriptor on which it announces supervised calls."""
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _FilterProgram(length=len(code) // 8, filter=ctypes.cast(buffer, ctypes.c_void_p))
    number = _SECCOMP[os.uname().machine]
    listener = _libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_NEW_LISTENER, ctypes.byref(program))
    return _check(listener, "seccomp")


def _become_command(policy: dict[str, Any], command: list[str], to_launcher: socket.socket) -> None:
    """Restricts this process and replaces it by ``command``; returns only by an exception."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, what="death signal")
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if "landlock" in policy:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, what="no new privileges")
        _drop_capabilities()
        _apply_landlock(policy["landlock"])
        listener = _apply_seccomp(bytes.fromhex(policy["seccomp"]))
        socket.send_fds(to_launcher, [b"listener"], [listener])
    os.execvp(command[0], command)


class _Supervisor:
    """Carries out changes of modes and times for the command, on files that lie in a writable place.

    The file is opened here, judged by where it really is, and changed through that descriptor, so nothing that the
    command does meanwhile can exchange it.
    """

    def __init__(self, listener: int, policy: dict[str, Any]) -> None:
        self._listener = listener
        self._names = {number: name for name, number in policy["supervised"].items()}
        self._roots = tuple(root + "/" for root in policy["writable"])

    def serve(self) -> None:
        """Answers one announced call."""
        request = bytearray(80)
        try:
            fcntl.ioctl(self._listener, _NOTIFICATION_RECEIVE, request)
        except OSError:
            # The caller was killed before its call was received.
            return
        identity, process, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", request)
        try:
            self._carry_out(self._names[number], process, identity, arguments)
            error = 0
        except OSError as failure:
            error = -(failure.errno or errno.EPERM)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._listener, _NOTIFICATION_SEND, struct.pack("=QqiI", identity, 0, error, 0))

    def _carry_out(self, name: str, process: int, identity: int, arguments: list[int]) -> None:
        if name == "chmod":
            arguments = [_AT_FDCWD, *arguments]
        directory = ctypes.c_int32(arguments[0] & 0xFFFFFFFF).value
        by_descriptor = name == "fchmod" or (name == "utimensat" and arguments[1] == 0)
        path = None if by_descriptor else _read_path(process, arguments[1])
        times = b""
        if name == "utimensat":
            follow = not arguments[3] & _AT_SYMLINK_NOFOLLOW
            times = _read_memory(process, arguments[2], 32) if arguments[2] else b""
        else:
            follow = True
        file = _open_as_seen_by(process, directory, path, follow=follow)
        try:
            # Only now is it certain that ``process`` was still the caller while its memory and files were read.
            fcntl.ioctl(self._listener, _NOTIFICATION_IS_VALID, struct.pack("=Q", identity))
            here = f"/proc/self/fd/{file}"
            if not (os.readlink(here) + "/").startswith(self._roots):
                raise PermissionError(errno.EPERM, "outside")
            if name == "utimensat":
                _check(_libc.utimensat(file, b"", times or None, _AT_EMPTY_PATH), "times")
            else:
                _change_mode(here, arguments[1 if name == "fchmod" else 2])
        finally:
            os.close(file)


def _change_mode(path: str, mode: int) -> None:
    if mode & 0o6000:
        raise PermissionError(errno.EPERM, "set-user-id")
    os.chmod(path, mode & 0o1777)


def _read_memory(process: int, address: int, size: int) -> bytes:
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, address)


def _read_path(process: int, address: int) -> bytes:
    # The page after the one with the path may not exist, and then the read ends before it.
    path, end, _ = _read_memory(process, address, _PATH_MAX).partition(b"\0")
    if not end:
        raise OSError(errno.ENAMETOOLONG, "path")
    if not path:
        raise OSError(errno.ENOENT, "path")
    return path


def _open_as_seen_by(process: int, directory: int, path: bytes | None, *, follow: bool) -> int:
    """An O_PATH descriptor of the file that ``process`` means."""
    base = f"/proc/{process}/cwd" if directory == _AT_FDCWD else f"/proc/{process}/fd/{directory}"
    flags = os.O_PATH | os.O_CLOEXEC
    if path is None:
        return os.open(base, flags)
    flags |= 0 if follow else os.O_NOFOLLOW
    if path.startswith(b"/"):
        return os.open(path, flags)
    parent = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.open(path, flags, dir_fd=parent)
    finally:
        os.close(parent)


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


def _serve_until_end(child: int, from_command: socket.socket, policy: dict[str, Any]) -> None:
    """Supervises the command's tree until ``child`` has ended."""
    if "landlock" not in policy:
        return
    _, descriptors, _, _ = socket.recv_fds(from_command, 16, 1)
    if not descriptors:
        return
    supervisor = _Supervisor(descriptors[0], policy)
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(descriptors[0], select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if ended in ready:
            return
        if ready.get(descriptors[0], 0) & select.POLLIN:
            supervisor.serve()


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    policy, command = json.loads(arguments[0]), arguments[1:]

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, what="death signal")
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, what="subreaper")
    if os.getppid() != policy["host"]:
        return _CANNOT_START
    to_launcher, from_command = socket.socketpair()
    try:
        child = os.fork()
        if child == 0:
            try:
                _become_command(policy, command, to_launcher)
            except BaseException as error:
                os.write(2, f"sandbox: {error}\n".encode())
            os._exit(_CANNOT_START)
        to_launcher.close()
        _serve_until_end(child, from_command, policy)
        _, status = os.waitpid(child, 0)
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_all()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
