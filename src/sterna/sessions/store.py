"""The directory of stored sessions: one writer, any number of readers, a quota, and nothing half-written.

DIRECTORY/vN/lock                          held by the one process that may write; N is the format version
DIRECTORY/vN/NAMESPACE/segments/NAME.kv    KV blocks of up to 1,024 tokens, named by content
DIRECTORY/vN/NAMESPACE/segments/NAME.state
DIRECTORY/vN/NAMESPACE/sessions/ID.session the manifest: tokens, and the names of the files above

A manifest is written after everything that it names. Files that no manifest names are swept at the next start, and so are
directories of older formats: what they hold can be computed again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sterna.errors import SessionError
from sterna.sessions.sealed_file import (
    FORMAT_VERSION,
    Bytes,
    Sealed,
    name_of,
    open_sealed,
    seal,
    sync_directory,
    write_atomically,
)
from sterna.sessions.session import SegmentRef, Session, StateRef, as_tokens, directory_name, now

GIB = 1 << 30
DEFAULT_QUOTA_BYTES = 16 * GIB
# Left free on the disk for everybody else.
RESERVE_BYTES = 256 << 20


class SessionStore:
    """Stored sessions of all namespaces; thread-safe. ``say`` gets one line for everything that a user should know.

    A second process on the same directory gets a store that reads only. So does one whose disk turned out to be full.
    Everything on the disk is verified when it is opened; what is damaged counts as not there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.directory = directory / f"v{FORMAT_VERSION}"
        self.quota_bytes = quota_bytes
        self.reserve_bytes = reserve_bytes
        self.say = say
        self.why_read_only: str | None = None
        self._lock = threading.RLock()
        self._sessions: dict[str, Session] = {}
        self._descriptor: int | None = None
        self._pending: set[tuple[str, str]] = set()
        self._open()

    # opening ---------------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether sessions are stored."""
        return self.why_read_only is None

    def _open(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stop_writing(f"another process writes to {self.directory}")
        except OSError as error:
            self._stop_writing(f"{self.directory} cannot be written: {error.strerror}")
        for path in sorted(self.directory.glob("*/sessions/*.session")):
            try:
                found = open_sealed(path, named_by_digest=False)
                session = Session.from_manifest(found.header, found.payload)
            except SessionError as error:
                self.say(f"a stored session is not used and will be computed again: {error.message}")
                if self.writable:
                    _remove(path)
                continue
            self._sessions[session.id] = session
        if self.writable:
            self.sweep()
            self._drop_older_formats()

    def _drop_older_formats(self) -> None:
        for path in self.directory.parent.glob("v[0-9]*"):
            if path.name[1:].isdigit() and int(path.name[1:]) < FORMAT_VERSION:
                self.say(f"stored sessions of format {path.name[1:]} are removed and will be computed again")
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Let another process write."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.why_read_only = self.why_read_only or "the store is closed"

    def _stop_writing(self, why: str) -> None:
        if self.why_read_only is None:
            self.why_read_only = why
            self.say(f"sessions are not stored: {why}")

    # reading ---------------------------------------------------------------------------------------------------------

    def sessions(self, namespace: str | None = None) -> list[Session]:
        """Stored sessions, the one that was used last first."""
        wanted = None if namespace is None else directory_name(namespace)
        with self._lock:
            found = [s for s in self._sessions.values() if wanted is None or s.namespace == wanted]
        return sorted(found, key=lambda session: -session.serial)

    def get(self, prefix: str) -> Session:
        """The session whose id begins like that; raises `SessionError` when there is none or more than one."""
        found = [session for session in self.sessions() if session.id.startswith(prefix)]
        if len(found) != 1:
            problem = f"{len(found)} sessions begin with" if found else "there is no session"
            raise SessionError(f"{problem} {prefix!r}", hint="`sterna sessions list` shows their ids")
        return found[0]

    def read(self, session: Session, part: SegmentRef | StateRef) -> Sealed:
        """The mapped and verified content of a file of a session; raises `SessionError`."""
        found = open_sealed(self._part_path(session.namespace, part))
        if found.header["fingerprint"] != session.fingerprint:
            raise SessionError(f"{part.name} belongs to another model or kernel variant")
        return found

    def total_bytes(self) -> int:
        """Bytes of all files in the directory."""
        return sum(_size(path) for path in self._files())

    # writing ---------------------------------------------------------------------------------------------------------

    def hold(self, session: Session) -> None:
        """Keep the files that a session names although its manifest is not written yet; until the next `put`."""
        with self._lock:
            self._pending |= {(session.namespace, _file_name(part)) for part in session.parts}

    def write_part(self, namespace: str, header: dict[str, Any], payload: Bytes) -> tuple[str, int]:
        """Store KV blocks or a state in a namespace directory; returns name and bytes.

        Raises:
            OSError: the disk is full or broken.
            SessionError: the quota is too small for one session.
        """
        lead, digest = seal(header, payload)
        name, size = name_of(digest), len(lead) + payload.nbytes + len(digest)
        path = self._namespace(namespace) / "segments" / f"{name}.{header['kind']}"
        with self._lock:
            self._pending.add((namespace, path.name))
        if not path.exists():
            self._make_room(size)
            _make_folder(path.parent)
            write_atomically(path, lead, payload, digest)
        return name, size

    def put(self, session: Session) -> Session | None:
        """Store a manifest whose parts are there, as the session used last; ``None`` when the store does not write."""
        with self._lock:
            if not self.writable:
                return None
            session = replace(session, serial=self._next_serial(), updated=now())
            payload = session.tokens.view(np.uint8)
            lead, digest = seal(session.header(), payload)
            path = self._manifest_path(session)
            self.hold(session)
            self._make_room(len(lead) + payload.nbytes + len(digest))
            _make_folder(path.parent)
            write_atomically(path, lead, payload, digest)
            replaced = self._sessions.get(session.id)
            self._sessions[session.id] = session
            self._pending.clear()
            if replaced is not None:
                self._drop_parts(replaced)
            return session

    def fork(self, prefix: str) -> Session:
        """A copy that goes its own way and shares the files so far; raises `SessionError`."""
        session = replace(self.get(prefix), id=new_id(), created=now())
        self._check_writable()
        try:
            stored = self.put(session)
        except OSError as error:
            raise SessionError(f"the copy cannot be written: {error.strerror or error}") from error
        assert stored is not None
        return stored

    def delete(self, prefix: str) -> int:
        """Remove a session and the files that no other one needs; returns the bytes that became free."""
        session = self.get(prefix)
        self._check_writable()
        with self._lock:
            return self._delete(session)

    def forget(self, session: Session) -> bool:
        """Remove a session whose files turned out to be damaged; False when it was replaced or deleted meanwhile."""
        with self._lock:
            if self._sessions.get(session.id) is not session:
                return False
            if self.writable:
                self._delete(session)
            else:
                del self._sessions[session.id]
            return True

    def disk_failed(self, error: OSError) -> None:
        """Nothing is stored from now on; what is there stays readable."""
        self._stop_writing("the disk is full" if error.errno == errno.ENOSPC else f"{error.strerror or error}")

    def sweep(self) -> int:
        """Remove files that no session names, as a killed process leaves them; returns the bytes that became free."""
        with self._lock:
            needed = self._needed()
            freed = 0
            for path in self._files():
                manifest = path.suffix == ".session" and not path.name.startswith(".")
                if not manifest and (path.parent.parent.name, path.name) not in needed:
                    freed += _remove(path)
            return freed

    def _check_writable(self) -> None:
        if not self.writable:
            raise SessionError(f"sessions cannot be changed: {self.why_read_only}", hint="end the other process first")

    def _make_room(self, size: int) -> None:
        """Delete the sessions that were not used for longest until the quota and the disk have room for a file."""
        with self._lock:
            used = self.total_bytes()
            by_age = sorted(self._sessions.values(), key=lambda session: session.serial)
            while used + size > self.quota_bytes and by_age:
                used -= self._delete(by_age.pop(0))
            if used + size > self.quota_bytes:
                raise SessionError(f"the quota of {self.quota_bytes:,} bytes is too small for one session")
            if shutil.disk_usage(self.directory).free - size < self.reserve_bytes:
                raise OSError(errno.ENOSPC, "no space left on the disk")

    def _delete(self, session: Session) -> int:
        del self._sessions[session.id]
        path = self._manifest_path(session)
        freed = _remove(path)
        # names go before what they name
        sync_directory(path.parent)
        return freed + self._drop_parts(session)

    def _drop_parts(self, session: Session) -> int:
        needed = self._needed()
        paths = [self._part_path(session.namespace, part) for part in session.parts]
        return sum(_remove(path) for path in dict.fromkeys(paths) if (session.namespace, path.name) not in needed)

    def _needed(self) -> set[tuple[str, str]]:
        named = {(session.namespace, _file_name(part)) for session in self._sessions.values() for part in session.parts}
        return named | self._pending

    def _next_serial(self) -> int:
        return 1 + max((session.serial for session in self._sessions.values()), default=0)

    # paths -----------------------------------------------------------------------------------------------------------

    def _namespace(self, name: str) -> Path:
        return self.directory / name

    def _manifest_path(self, session: Session) -> Path:
        return self._namespace(session.namespace) / "sessions" / f"{session.id}.session"

    def _part_path(self, namespace: str, part: SegmentRef | StateRef) -> Path:
        return self._namespace(namespace) / "segments" / _file_name(part)

    def _files(self) -> Iterator[Path]:
        for folder in ("segments", "sessions"):
            yield from self.directory.glob(f"*/{folder}/*")


def new_id() -> str:
    """A name for a session."""
    return secrets.token_hex(5)


def empty_session(namespace: str, *, fingerprint: str, model: str, tokens: Iterable[int] = ()) -> Session:
    """A session without files."""
    return Session(
        id=new_id(),
        namespace=directory_name(namespace),
        serial=0,
        created=now(),
        updated=now(),
        fingerprint=fingerprint,
        model=model,
        tokens=as_tokens(list(tokens)),
        segments=(),
        states=(),
    )


def _make_folder(folder: Path) -> None:
    """Only the owner may look into it."""
    for path in (folder.parent, folder):
        path.mkdir(exist_ok=True, mode=0o700)


def _file_name(part: SegmentRef | StateRef) -> str:
    return f"{part.name}.{'kv' if isinstance(part, SegmentRef) else 'state'}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> int:
    size = _size(path)
    path.unlink(missing_ok=True)
    return size
