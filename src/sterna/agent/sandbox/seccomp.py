"""A seccomp filter for the weaker rung: system calls that reach past what Landlock holds.

The filter is a classic BPF program over ``struct seccomp_data`` (``linux/seccomp.h``, ``linux/filter.h``). It denies by
name and allows the rest: a list of everything that programs may need would break them with every new C library.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

from sterna.errors import SandboxError

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _NOTIFY, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x7FC00000, 0x80000000
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_AF_UNIX = 1
_NEW_NAMESPACE_FLAGS = 0x7E020000

# Numbers for (x86_64, aarch64); None where the call does not exist.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "socketpair": (53, 199),
    "clone": (56, 220), "clone3": (435, 435), "unshare": (272, 97), "setns": (308, 268),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272), "prlimit64": (302, 261),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "quotactl": (179, 60), "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "chown": (92, None), "lchown": (94, None), "fchownat": (260, 54),
    "fchmodat2": (452, 452), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}  # fmt: skip

SUPERVISED = {"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "utimensat": (280, 88)}
"""Calls that Landlock does not judge and that programs need: the launcher carries them out where they are harmless."""

# The C library falls back to a call that the filter can judge when these do not exist.
_ABSENT = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "fchmodat2")


@dataclass(frozen=True, slots=True)
class _Condition:
    """Deny when the low word of argument ``index`` compares so with ``value``."""

    index: int
    jump: int
    value: int
    deny_if: bool


_CONDITIONS = {
    # A socket pair ends in this process tree; any other socket could reach a service of the host.
    "socketpair": _Condition(0, _JUMP_EQ, _AF_UNIX, deny_if=False),
    "clone": _Condition(0, _JUMP_ANY_BIT, _NEW_NAMESPACE_FLAGS, deny_if=True),
    "prlimit64": _Condition(0, _JUMP_EQ, 0, deny_if=False),
}


def machine() -> str:
    """The processor family, one of those that the filter knows.

    Raises:
        SandboxError: another one.
    """
    name = platform.machine()
    if name not in _AUDIT_ARCH:
        raise SandboxError(f"seccomp filter: processor is {name}, allowed are {', '.join(_AUDIT_ARCH)}")
    return name


def build_filter() -> bytes:
    """The filter for this machine, eight bytes per instruction."""
    arch = machine()
    column = list(_AUDIT_ARCH).index(arch)
    code = _statement(_LOAD, _ARCH_OFFSET)
    code += _jump(_JUMP_EQ, _AUDIT_ARCH[arch], yes=1, no=0) + _statement(_RETURN, _KILL_PROCESS)
    code += _statement(_LOAD, _NR_OFFSET)
    if arch == "x86_64":
        code += _jump(_JUMP_GE, _X32_BIT, yes=0, no=1) + _statement(_RETURN, _KILL_PROCESS)
    for name, numbers in _NUMBERS.items():
        if (number := numbers[column]) is not None:
            code += _rule(number, _CONDITIONS.get(name), _refusal(name))
    for number in supervised_numbers().values():
        code += _jump(_JUMP_EQ, number, yes=0, no=1) + _statement(_RETURN, _NOTIFY)
    return code + _statement(_RETURN, _ALLOW)


def supervised_numbers() -> dict[str, int]:
    """The numbers of the supervised calls on this machine."""
    column = list(_AUDIT_ARCH).index(machine())
    return {name: number for name, numbers in SUPERVISED.items() if (number := numbers[column]) is not None}


def _refusal(name: str) -> int:
    if name in _ABSENT:
        return errno.ENOSYS
    # Programs that preserve access lists then fall back to plain modes.
    return errno.EOPNOTSUPP if "xattr" in name else errno.EPERM


def _rule(number: int, condition: _Condition | None, code: int) -> bytes:
    deny = _statement(_RETURN, _ERRNO | code)
    if condition is None:
        return _jump(_JUMP_EQ, number, yes=0, no=1) + deny
    body = _statement(_LOAD, _ARGS_OFFSET + 8 * condition.index)
    body += _jump(condition.jump, condition.value, yes=0 if condition.deny_if else 1, no=1 if condition.deny_if else 0)
    body += deny + _statement(_RETURN, _ALLOW)
    return _jump(_JUMP_EQ, number, yes=0, no=len(body) // 8) + body


def _statement(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _jump(code: int, value: int, *, yes: int, no: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
