"""Text files below one directory, read and written through that directory's descriptor.

Every component of a path is opened without following symbolic links out of the workspace, so a link that the agent's
own shell planted cannot lead the editor, which runs outside the sandbox, to other files.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from sterna.agent.sandbox.paths import python_paths
from sterna.errors import AgentError

MAX_FILE_BYTES = 8 << 20
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class TextFile:
    """A decoded file; in ``text`` every line ends with a newline even where the file has CR LF (``crlf``)."""

    text: str
    crlf: bool = False
    bom: bool = False
    mode: int | None = None
    owner: tuple[int, int] | None = None

    def normal(self, part: str) -> str:
        """``part`` with the line endings that ``text`` has."""
        return part.replace("\r\n", "\n") if self.crlf else part

    def with_text(self, text: str) -> TextFile:
        """The same file with other content."""
        return replace(self, text=text)

    def encode(self) -> bytes:
        """The bytes to write."""
        text = self.text.replace("\n", "\r\n") if self.crlf else self.text
        return (b"\xef\xbb\xbf" if self.bom else b"") + text.encode("utf-8")

    @classmethod
    def decode(cls, data: bytes, status: os.stat_result) -> TextFile:
        """The text of ``data``; raises ``UnicodeDecodeError``. A file with mixed line endings is kept as it is."""
        bom = data.startswith(b"\xef\xbb\xbf")
        text = data[3 * bom :].decode("utf-8")
        crlf = "\r\n" in text and text.count("\n") == text.count("\r\n")
        return cls(
            text.replace("\r\n", "\n") if crlf else text,
            crlf=crlf,
            bom=bom,
            mode=stat.S_IMODE(status.st_mode),
            owner=(status.st_uid, status.st_gid),
        )


class WorkspaceRoot:
    """The directory that the editor may touch. Paths are relative to it or absolute; errors name them as given."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._fd = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return self._stat(path) is not None

    def is_directory(self, path: str) -> bool:
        """Whether ``path`` is a directory."""
        status = self._stat(path)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def list_directory(self, path: str) -> list[str]:
        """The sorted names in a directory; directories end with a slash."""
        with self._located(path) as (parent, name), _opened(parent, name, os.O_RDONLY | os.O_DIRECTORY) as fd:
            entries = list(os.scandir(fd))
            return sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries)

    def read(self, path: str) -> TextFile:
        """The text of a file.

        Raises:
            AgentError: absent, not a regular file, larger than 8 MiB, or not UTF-8 text.
        """
        with self._located(path) as (parent, name), _opened(parent, name, os.O_RDONLY | os.O_NONBLOCK) as fd:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise AgentError(f"{path} is a directory")
            if not stat.S_ISREG(status.st_mode):
                raise AgentError(f"{path} is not a regular file")
            data = _read_at_most(fd, MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise AgentError(
                f"{path} has {status.st_size} bytes, allowed are {MAX_FILE_BYTES}",
                hint="use sed or head with the bash tool",
            )
        try:
            file = TextFile.decode(data, status)
        except UnicodeDecodeError as error:
            raise AgentError(f"{path} is not UTF-8 text: invalid byte at offset {error.start}") from error
        if "\0" in file.text:
            raise AgentError(f"{path} is a binary file: NUL byte at offset {data.index(0)}")
        return file

    def write(self, path: str, file: TextFile) -> None:
        """Replaces or creates a file in one step, so that a crash leaves the old or the new content.

        Raises:
            AgentError: the directory is absent, is outside the workspace, or cannot be written.
        """
        try:
            data = file.encode()
        except UnicodeEncodeError as error:
            raise AgentError(f"the new content of {path} is not valid Unicode at character {error.start}") from error
        if len(data) > MAX_FILE_BYTES:
            raise AgentError(f"the new content of {path} has {len(data)} bytes, allowed are {MAX_FILE_BYTES}")
        with self._located(path, make_parents=True) as (parent, name):
            self._refuse_protected(Path(os.readlink(f"/proc/self/fd/{parent}")) / name, path)
            temporary = f".sterna-{secrets.token_hex(8)}"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=parent)
            try:
                with open(fd, "wb") as output:
                    output.write(data)
                    output.flush()
                    _keep_attributes(fd, file)
                    os.fsync(fd)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                os.unlink(temporary, dir_fd=parent)
                raise

    def _refuse_protected(self, real: Path, path: str) -> None:
        """The shell may not write these either: they are run later, outside the sandbox."""
        installed = any(real.is_relative_to(prefix) for prefix in python_paths(self._workspace))
        if installed or ".git" in real.relative_to(self._workspace).parts:
            raise AgentError(f"{path} is protected, files of .git and of the Python installation cannot be edited")

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            with self._located(path) as (parent, name):
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except AgentError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    @contextmanager
    def _located(self, path: str, *, make_parents: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory that really holds ``path``, and the name in it, which is no link."""
        parts = self._relative_parts(path)
        walk = _Walk(os.dup(self._fd), make_parents=make_parents)
        try:
            try:
                name = walk.to(parts, str(self._workspace))
            except OSError as error:
                raise _explained(error, path) from error
            try:
                yield walk.fd, name
            except OSError as error:
                raise _explained(error, path) from error
        finally:
            walk.close()

    def _relative_parts(self, path: str) -> list[str]:
        if not path:
            raise AgentError("path is empty, allowed is a path in the working directory")
        if not path.startswith("/"):
            return path.split("/")
        root = str(self._workspace)
        if path != root and not path.startswith(root + "/"):
            raise _outside(path, root)
        return path[len(root) :].split("/")


class _OutsideError(OSError):
    """A path led out of the workspace."""


class _Walk:
    """Follows a path component by component, links included, and never climbs above where it began."""

    def __init__(self, fd: int, *, make_parents: bool) -> None:
        self._stack = [fd]
        self._make_parents = make_parents
        self._links = 0

    @property
    def fd(self) -> int:
        return self._stack[-1]

    def to(self, parts: list[str], root: str) -> str:
        """Enters every directory but the last component and returns that; "." when the path ends in a directory."""
        pending = [part for part in parts if part not in ("", ".")]
        while pending:
            part = pending.pop(0)
            if part == "..":
                self._leave()
                continue
            target = self._link_target(part)
            if target is not None:
                pending = self._link_parts(target, root) + pending
            elif not pending:
                return part
            else:
                self._enter(part)
        return "."

    def _leave(self) -> None:
        if len(self._stack) == 1:
            raise _OutsideError(errno.EXDEV, "outside")
        os.close(self._stack.pop())

    def _enter(self, part: str) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(part, flags, dir_fd=self.fd)
        except FileNotFoundError:
            if not self._make_parents:
                raise
            os.mkdir(part, dir_fd=self.fd)
            fd = os.open(part, flags, dir_fd=self.fd)
        self._stack.append(fd)

    def _link_target(self, part: str) -> str | None:
        try:
            return os.readlink(part, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def _link_parts(self, target: str, root: str) -> list[str]:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith("/"):
            if target != root and not target.startswith(root + "/"):
                raise _OutsideError(errno.EXDEV, "outside")
            while len(self._stack) > 1:
                self._leave()
            target = target[len(root) :]
        return [part for part in target.split("/") if part not in ("", ".")]

    def close(self) -> None:
        for fd in self._stack:
            os.close(fd)


@contextmanager
def _opened(parent: int, name: str, flags: int) -> Iterator[int]:
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def _read_at_most(fd: int, limit: int) -> bytes:
    chunks = []
    while limit > 0 and (chunk := os.read(fd, min(limit, 1 << 20))):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def _keep_attributes(fd: int, file: TextFile) -> None:
    status = os.fstat(fd)
    if file.owner is not None and file.owner != (status.st_uid, status.st_gid):
        os.fchown(fd, *file.owner)
    if file.mode is not None:
        os.fchmod(fd, file.mode)


def _outside(path: str, root: str) -> AgentError:
    return AgentError(f"{path} is outside the working directory {root}", hint="only files below it can be edited")


def _explained(error: OSError, path: str) -> AgentError:
    if isinstance(error, _OutsideError):
        return AgentError(f"{path} leads outside the working directory", hint="only files below it can be edited")
    if isinstance(error, FileNotFoundError):
        return AgentError(f"{path} does not exist")
    return AgentError(f"{path} cannot be used: {error.strerror}")
