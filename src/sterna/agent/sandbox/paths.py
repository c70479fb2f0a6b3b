"""Which parts of the host a sandboxed command may see."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from sterna.agent.sandbox.base import home_directory

SYSTEM_DIRECTORIES = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu",
    "/sys/devices/system/cpu",
)  # fmt: skip
"""Programs, libraries and their configuration. Everything else of the host does not exist inside."""

_SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_CREDENTIAL_FILES = (
    "/etc/pip.conf",
    "/etc/netrc",
    "/etc/environment",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/sudoers.d",
)
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_PREFIX_PARTS = (
    "bin", f"lib/python{_VERSION}", f"lib/libpython{_VERSION}.so.1.0", f"include/python{_VERSION}", "pyvenv.cfg",
)  # fmt: skip


def python_paths(workspace: Path) -> list[Path]:
    """The directories that the running Python interpreter needs and that lie outside the system directories.

    A prefix that holds a whole home or the workspace is reduced to the parts an interpreter has.
    """
    programs = (sys.executable, os.path.realpath(sys.executable))
    candidates = {Path(sys.prefix), Path(sys.base_prefix), *(Path(program).parent.parent for program in programs)}
    home = home_directory()
    found: list[Path] = []
    for prefix in sorted(path.absolute() for path in candidates):
        too_wide = home.is_relative_to(prefix) or workspace.is_relative_to(prefix)
        parts = [prefix / part for part in _PREFIX_PARTS] if too_wide else [prefix]
        found += [part for part in parts if os.path.exists(part) and not _in_system(part)]
    return found


def search_path(*, temporary: str) -> str:
    """PATH inside: the directory of the running interpreter first, so that ``python`` is that one."""
    directories = (f"{temporary}/bin", *_SYSTEM_PATH) if needs_python_link() else _SYSTEM_PATH
    return ":".join(dict.fromkeys((str(Path(sys.executable).parent), *directories)))


def needs_python_link() -> bool:
    """Whether the running interpreter has no sibling called ``python``, as on systems with ``python3`` only."""
    return not os.path.exists(Path(sys.executable).parent / "python")


def minimal_environment(*, home: str, temporary: str) -> dict[str, str]:
    """The variables of a sandboxed command; nothing is inherited."""
    return {
        "PATH": search_path(temporary=temporary),
        "HOME": home,
        "TMPDIR": temporary,
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def private_paths() -> list[Path]:
    """What lies in the system directories but is not everyone's to read: keys, password hashes, credentials.

    The kernel protects these from a plain user, not from root, whose files they are.
    """
    named = [Path(path) for path in _CREDENTIAL_FILES if os.path.lexists(path)]
    found = _unreadable_by_others("/etc", depth=8) + _unreadable_by_others("/opt", depth=2)
    return sorted({*named, *found})


def _unreadable_by_others(root: str, *, depth: int) -> list[Path]:
    try:
        entries = list(os.scandir(root))
    except OSError:
        return []
    found: list[Path] = []
    for entry in entries:
        if entry.is_symlink():
            continue
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError:
            continue
        is_directory = stat.S_ISDIR(mode)
        needed = stat.S_IROTH | (stat.S_IXOTH if is_directory else 0)
        if mode & needed != needed:
            found.append(Path(entry.path))
        elif is_directory and depth > 1:
            found += _unreadable_by_others(entry.path, depth=depth - 1)
    return found


def _in_system(path: Path) -> bool:
    return any(path.is_relative_to(root) for root in SYSTEM_DIRECTORIES)


def public_paths() -> list[Path]:
    """The system directories without their private parts, as the largest subtrees that may be read whole."""
    private = private_paths()
    return [part for directory in SYSTEM_DIRECTORIES for part in _public_parts(Path(directory), private)]


def _public_parts(path: Path, private: list[Path]) -> list[Path]:
    if path.is_symlink() or not path.exists() or path in private:
        return []
    if not any(hidden.is_relative_to(path) for hidden in private):
        return [path]
    return [part for child in sorted(path.iterdir()) for part in _public_parts(child, private)]
