"""A model hub on this machine: the two kinds of requests that a pull makes, and the ways in which a real one fails."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000  # files from this size carry a SHA-256, smaller ones a git hash, as on the real hub


@dataclass
class Fault:
    """What goes wrong with one file, for the first ``times`` requests of it."""

    kind: str
    times: int = 1
    after: int = 1000
    retry_after: str | None = "7"


@dataclass
class HubDouble:
    """Serves ``files`` as the repository ``repo_id``; `faults` by file name, ``"list"`` for the list of files."""

    files: dict[str, bytes]
    repo_id: str = "owner/model"
    tags: tuple[str, ...] = ("license:apache-2.0",)
    gguf: dict[str, Any] | None = None
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> HubDouble:
        self._servers = [self._start(), self._start()]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _start(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def take_fault(self, name: str) -> Fault | None:
        with self._lock:
            fault = self.faults.get(name)
            if fault is None or fault.times < 1:
                return None
            fault.times -= 1
            return fault

    def ranges_of(self, name: str) -> list[str | None]:
        """The Range header of every request for a file, in order."""
        return [headers.get("range") for _, path, headers in self.requests if path.endswith("/" + name)]

    def info(self) -> dict[str, Any]:
        """The answer about the repository."""
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if len(data) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        info = {"_id": "1", "id": self.repo_id, "modelId": self.repo_id, "sha": COMMIT, "private": False, "gated": False,
                "disabled": False, "downloads": 0, "likes": 0, "tags": list(self.tags), "siblings": siblings}  # fmt: skip
        return info if self.gguf is None else {**info, "gguf": self.gguf}


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if path.startswith("/api/models/"):
            return self._list(path.removeprefix("/api/models/"))
        match = re.fullmatch(rf"/(?:cdn/)?{re.escape(self.hub.repo_id)}/resolve/{COMMIT}/(.+)", path)
        if match is None or match[1] not in self.hub.files:
            return self._refuse(404, "EntryNotFound")
        self._file(match[1], cdn=path.startswith("/cdn/"))

    def _list(self, name: str) -> None:
        repo_id, _, revision = name.partition("/revision/")
        fault = self.hub.take_fault("list")
        if fault and fault.kind == "busy":
            return self._answer(429, b"", {"Retry-After": fault.retry_after} if fault.retry_after else {})
        if fault and fault.kind == "gated":
            return self._refuse(403, "GatedRepo")
        if fault and fault.kind == "nonsense":
            return self._answer(200, b"<html>captive portal</html>", {"Content-Type": "text/html"})
        if repo_id != self.hub.repo_id:
            return self._refuse(401, "RepoNotFound")
        if revision not in ("", "main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        self._answer(200, json.dumps(self.hub.info()).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, *, cdn: bool) -> None:
        data = self.hub.files[name]
        fault = None if cdn else self.hub.take_fault(name)
        kind = fault.kind if fault else ""
        if kind == "redirect":
            location = f"{self.hub.cdn}/cdn/{self.hub.repo_id}/resolve/{COMMIT}/{name}"
            return self._answer(302, b"", {"Location": location})
        if fault and kind == "busy":
            return self._answer(429, b"", {"Retry-After": fault.retry_after} if fault.retry_after else {})
        if kind == "ratelimit":
            return self._answer(429, b"", {"RateLimit": '"resolvers";r=0;t=11'})
        if kind in ("forbidden", "gone", "broken"):
            return self._refuse({"forbidden": 403, "gone": 404, "broken": 418}[kind], "")
        if kind == "corrupt":
            data = bytes([data[0] ^ 1]) + data[1:]
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if asked and kind != "no-ranges":
            start = int(asked[1])
        body, headers = data[start:], {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if fault and kind == "truncated":  # a short file that claims to be whole
            body = body[: fault.after]
        self.hub.served[name] += len(body)
        if fault and kind == "interrupted":  # fewer bytes than announced
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body[: fault.after])
            self.close_connection = True
            return None
        self._answer(206 if start else 200, body, headers)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code} if code else {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def directory_files(directory: Any, keep: Callable[[str], bool] = lambda name: True) -> dict[str, bytes]:
    """The files of a checkpoint directory, as `HubDouble` takes them."""
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.is_file() and keep(p.name)}
