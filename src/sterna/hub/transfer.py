"""Files over HTTP: continued where they broke off, hashed as they arrive, and named only once their hash is right.

The bytes go to ``DIRECTORY/.partial``; a file appears under its name when it is whole and verified.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.errors import CheckpointError
from sterna.hub.meter import Meter
from sterna.hub.repository import OFFLINE_HINT, HubFile, Repository
from sterna.hub.retry import RETRY_STATUS, Waits, retry_after

if TYPE_CHECKING:
    import httpx

PARTIAL = ".partial"
CHUNK_BYTES = 1 << 20
# A file whose hash is wrong is fetched anew this often; a mirror that serves other bytes will not get better.
MAX_WRONG_HASHES = 3
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 20.0, 60.0


class Stopped(Exception):
    """The transfer was asked to end; what has arrived is kept."""


class Digest:
    """SHA-256 of a file, and git's SHA-1 where that is what the hub publishes."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._blob = None if file.sha256 or not file.blob_sha1 else hashlib.sha1(usedforsecurity=False)
        if self._blob is not None:
            self._blob.update(b"blob %d\0" % file.size)

    def update(self, data: bytes) -> None:
        """The next bytes."""
        self._sha256.update(data)
        if self._blob is not None:
            self._blob.update(data)

    def sha256(self) -> str:
        """Of everything so far."""
        return self._sha256.hexdigest()

    def mismatch(self) -> str | None:
        """``None``, or how the hash differs from the published one."""
        if self._file.sha256 and self._sha256.hexdigest() != self._file.sha256:
            return f"SHA-256 {self._sha256.hexdigest()}, published is {self._file.sha256}"
        if self._blob is not None and self._blob.hexdigest() != self._file.blob_sha1:
            return f"git SHA-1 {self._blob.hexdigest()}, published is {self._file.blob_sha1}"
        return None


class _Busy(Exception):
    """The server asks to come back later."""

    def __init__(self, status: int, wait_s: float | None) -> None:
        super().__init__(status)
        self.status = status
        self.wait_s = wait_s


@dataclass(slots=True)
class _Partial:
    """A file on its way: ``have`` bytes of it are in ``path`` and in ``digest``."""

    path: Path
    digest: Digest
    have: int


class Transfer:
    """Fetches files of one repository into one directory; `fetch` may run in several threads at once."""

    def __init__(
        self,
        repository: Repository,
        directory: Path,
        client: httpx.Client,
        meter: Meter,
        *,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._repository = repository
        self._directory = directory
        self._client = client
        self._meter = meter
        self._sleep = sleep
        self.stop = threading.Event()

    def _pause(self, seconds: float) -> None:
        if self._sleep is not None:
            self._sleep(seconds)
        else:
            self.stop.wait(seconds)
        if self.stop.is_set():
            raise Stopped

    def fetch(self, file: HubFile) -> str:
        """Bring one file here and verify it; returns its SHA-256. A file that is here already is only verified.

        Raises `CheckpointError` when the hub refuses, goes on failing, or serves bytes with another hash.
        """
        target = self._directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == file.size:
            digest = self._hash(target, file)
            if digest.mismatch() is None:
                self._meter.skip(file.size)
                return digest.sha256()
        partial = self._directory / PARTIAL / file.path
        partial.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(MAX_WRONG_HASHES):
            digest = self._complete(file, partial)
            problem = digest.mismatch()
            if problem is None:
                partial.replace(target)
                return digest.sha256()
            partial.unlink()
            self._meter.skip(-file.size)
        raise CheckpointError(
            f"{file.path} arrived {MAX_WRONG_HASHES} times with another content: {problem}",
            hint="the connection or the mirror alters files: try another network or HF_ENDPOINT",
        )

    def _complete(self, file: HubFile, path: Path) -> Digest:
        """Fill the partial file up, with as many requests as it takes."""
        partial = self._resume(file, path)
        waits = Waits(self._pause)
        while partial.have < file.size:
            before, asked = partial.have, None
            reason = "the connection ended early"
            try:
                self._request(file, partial)
            except _Busy as busy:
                asked, reason = busy.wait_s, f"HTTP {busy.status}"
            except _transport_errors() as error:
                reason = f"{type(error).__name__}: {str(error)[:200]}"
            if partial.have > before:
                waits.reset()
            if partial.have < file.size and not waits.wait(asked):
                raise CheckpointError(
                    f"{file.path} stopped at byte {partial.have:,} of {file.size:,}: {waits.attempts} attempts in a row "
                    f"failed ({reason})",
                    hint="run the same command again to go on from there",
                )
        return partial.digest

    def _resume(self, file: HubFile, path: Path) -> _Partial:
        if path.exists() and path.stat().st_size > file.size:
            path.unlink()
        path.touch()
        have = path.stat().st_size
        self._meter.skip(have)
        return _Partial(path, self._hash(path, file), have)

    def _request(self, file: HubFile, partial: _Partial) -> None:
        """One request for what is missing; what arrives is in ``partial`` even if the connection breaks."""
        have = partial.have
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with self._client.stream("GET", self._repository.url(file.path), headers=headers) as response:
            if response.status_code in RETRY_STATUS:
                raise _Busy(response.status_code, retry_after(response.headers))
            _refuse(response, file, self._repository)
            if have and not _continues(response, have):
                # The server sends the file from its start.
                self._meter.skip(-have)
                partial.have, partial.digest = 0, Digest(file)
            with partial.path.open("r+b") as out:
                out.truncate(partial.have)
                out.seek(partial.have)
                for chunk in response.iter_bytes():
                    if self.stop.is_set():
                        raise Stopped
                    chunk = chunk[: file.size - partial.have]
                    out.write(chunk)
                    partial.digest.update(chunk)
                    partial.have += len(chunk)
                    self._meter.add(len(chunk))
                    if partial.have == file.size:
                        break

    def _hash(self, path: Path, file: HubFile) -> Digest:
        digest = Digest(file)
        with path.open("rb") as source:
            while data := source.read(CHUNK_BYTES):
                if self.stop.is_set():
                    raise Stopped
                digest.update(data)
        return digest


def make_client() -> httpx.Client:
    """An HTTP client with the hub's headers; the token goes to the hub only, not to where it redirects."""
    import httpx
    from huggingface_hub.utils import build_hf_headers

    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    return httpx.Client(headers=build_hf_headers(library_name="sterna"), follow_redirects=True, timeout=timeout)


def _transport_errors() -> tuple[type[Exception], ...]:
    import httpx

    return (httpx.TransportError,)


def _continues(response: Any, have: int) -> bool:
    headers: Mapping[str, str] = response.headers
    return response.status_code == 206 and headers.get("content-range", "").startswith(f"bytes {have}-")


def _refuse(response: Any, file: HubFile, repository: Repository) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in (401, 403):
        raise CheckpointError(
            f"{repository.repo_id} does not let you have {file.path} (HTTP {status})",
            hint=f"agree to its terms at {repository.endpoint}/{repository.repo_id} and set HF_TOKEN to a token",
        )
    if status == 404:
        raise CheckpointError(
            f"{repository.repo_id} lists {file.path}, but {repository.endpoint} has no such file",
            hint="a mirror may lag behind: try again without HF_ENDPOINT",
        )
    raise CheckpointError(f"{repository.endpoint} answered HTTP {status} for {file.path}", hint=OFFLINE_HINT)
