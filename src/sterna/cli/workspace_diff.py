"""What changed in a directory between two moments, as a unified diff."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

SKIPPED_DIRECTORIES = frozenset({".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", ".mypy_cache"})
MAX_FILE_BYTES = 1 << 20
MAX_FILES = 5_000


def snapshot(directory: Path) -> Mapping[str, bytes] | None:
    """Contents of the regular files up to 1 MiB by relative path; ``None`` when there are too many to keep."""
    files: dict[str, bytes] = {}
    for path in _regular_files(directory):
        if len(files) >= MAX_FILES:
            return None
        try:
            if path.stat().st_size <= MAX_FILE_BYTES:
                files[path.relative_to(directory).as_posix()] = path.read_bytes()
        except OSError:
            # what cannot be read cannot be shown; the sandbox does not depend on this
            continue
    return files


def unified_diff(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """The changes in git's form; binary files are named only."""
    parts: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if b"\0" in (old or b"") + (new or b""):
            parts.append(f"Binary files a/{name} and b/{name} differ\n")
            continue
        parts += difflib.unified_diff(
            _lines(old), _lines(new),
            "/dev/null" if old is None else f"a/{name}",
            "/dev/null" if new is None else f"b/{name}",
        )  # fmt: skip
    return "".join(parts)


def _lines(data: bytes | None) -> list[str]:
    if not data:
        return []
    lines = data.decode("utf-8", errors="replace").splitlines(keepends=True)
    if not lines[-1].endswith("\n"):
        lines[-1] += "\n\\ No newline at end of file\n"
    return lines


def _regular_files(directory: Path) -> Iterator[Path]:
    for root, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in SKIPPED_DIRECTORIES)
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                yield path
