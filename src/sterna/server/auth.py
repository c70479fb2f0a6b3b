"""Who may talk to the server: keys, Host, Origin."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sterna.errors import UsageError
from sterna.server.errors import StatusError

# clients cannot be told apart without keys, so they share one place in the queue
ANONYMOUS = "anonymous"


def is_loopback(host: str) -> bool:
    """Whether an address to bind can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class KeyFile:
    """Names and SHA-256 hashes of keys, in a file that its owner alone can read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, str]:
        """Hash of each key by its name.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            data = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UsageError(f"key file {self._path} cannot be read: {error}") from error
        if not isinstance(data, dict) or not all(isinstance(item, str) for item in data.values()):
            raise UsageError(f"key file {self._path} is damaged, allowed are names with a hash each")
        return data

    def create(self, name: str) -> str:
        """Make a key and store its hash; the key itself is kept nowhere."""
        hashes = self.load()
        if name in hashes:
            raise UsageError(f"a key called {name!r} exists already", hint=f"remove its line from {self._path}")
        key = "sk-sterna-" + secrets.token_urlsafe(32)
        hashes[name] = _hash(key)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(hashes, file, indent=1)
        os.replace(temporary, self._path)
        return key


def _hash(key: str) -> str:
    # keys are 256 random bits, so a slow hash would protect nothing
    return hashlib.sha256(key.encode("utf-8", errors="replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides from the headers alone; ``hashes`` empty means that no key is asked for."""

    hashes: Mapping[str, str]
    hosts: frozenset[str]

    @classmethod
    def make(cls, *, bind: str, hashes: Mapping[str, str], hosts: Iterable[str] = ()) -> Guard:
        """A guard for a server bound to ``bind``; ``hosts`` are further names that it goes by.

        Raises:
            UsageError: an address that others can reach, and no key.
        """
        if not hashes and not is_loopback(bind):
            raise UsageError(f"{bind} can be reached from other machines and no key is set")
        return cls(hashes, frozenset({"localhost", bind.lower(), *(host.lower() for host in hosts)}))

    def check(self, headers: Mapping[str, str], *, needs_key: bool = True) -> str:
        """The name of the client's key.

        Raises:
            StatusError: 403 for a foreign Host or Origin, 401 for a missing or wrong key.
        """
        host = headers.get("host", "")
        name = _hostname("//" + host)
        if name is None or not self._is_ours(name):
            raise StatusError(403, f"host {host[:100]!r} is not a name of this server")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise StatusError(403, f"origin {origin[:100]!r} is not allowed")
        return self._key_name(headers) if self.hashes and needs_key else ANONYMOUS

    def _is_ours(self, name: str) -> bool:
        # DNS rebinding needs a name: an address in the Host header is one that the client dialled
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _key_name(self, headers: Mapping[str, str]) -> str:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        candidates = [token.strip()] if scheme.lower() == "bearer" else []
        candidates.append(headers.get("x-api-key", ""))
        found = None
        for candidate in candidates:
            hashed = _hash(candidate)
            for name, known in self.hashes.items():
                # no early end: the time tells nothing about which key or how much of it was right
                if hmac.compare_digest(hashed, known) and candidate:
                    found = name
        if found is None:
            raise StatusError(401, "a key is missing or wrong")
        return found


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
