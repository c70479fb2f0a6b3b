"""Files that are whole or refused: header, payload, and a digest of both that is also the name.

magic      8 bytes
version    uint32, little-endian
length     uint32 of the header
header     JSON object
payload    bytes, aligned to 64
digest     SHA-256 of everything before it
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sterna.errors import SessionError

MAGIC = b"STERNSES"
# Raised whenever the meaning of a file changes; older files are recomputed.
FORMAT_VERSION = 1
DIGEST_BYTES = 32
ALIGNMENT = 64
Bytes = npt.NDArray[np.uint8]


class Sealed(NamedTuple):
    """An opened file: its header and its payload uint8 [N], mapped and not copied."""

    header: dict[str, Any]
    payload: Bytes


def seal(header: Mapping[str, Any], payload: Bytes) -> tuple[bytes, bytes]:
    """What stands before the payload, and the digest that stands after it."""
    text = json.dumps(header, sort_keys=True).encode()
    fixed = len(MAGIC) + 8
    text += b" " * (-(fixed + len(text)) % ALIGNMENT)
    lead = MAGIC + struct.pack("<II", FORMAT_VERSION, len(text)) + text
    digest = hashlib.sha256(lead)
    digest.update(payload.data)
    return lead, digest.digest()


def name_of(digest: bytes) -> str:
    """The file name that belongs to a digest."""
    return digest[:16].hex()


def write_atomically(path: Path, lead: bytes, payload: Bytes, digest: bytes) -> None:
    """The file is there completely, on the disk, or not at all. Raises ``OSError``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            for part in (lead, payload.data, digest):
                _write_all(file.fileno(), memoryview(part))
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_all(descriptor: int, data: memoryview) -> None:
    data = data.cast("B")
    while data:
        data = data[os.write(descriptor, data) :]


def sync_directory(directory: Path) -> None:
    """Make names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_sealed(path: Path, *, named_by_digest: bool = True) -> Sealed:
    """Map a file and verify every byte of it.

    Raises:
        SessionError: missing, damaged, or of another format version.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise SessionError(f"{path.name} cannot be read: {error}") from error
    data = np.frombuffer(mapped, np.uint8)
    fixed = len(MAGIC) + 8
    if len(data) < fixed + DIGEST_BYTES or data[: len(MAGIC)].tobytes() != MAGIC:
        raise SessionError(f"{path.name} is damaged: it does not begin as a session file does")
    version, length = struct.unpack("<II", data[len(MAGIC) : fixed].tobytes())
    digest = data[-DIGEST_BYTES:].tobytes()
    if hashlib.sha256(data[:-DIGEST_BYTES].data).digest() != digest:
        raise SessionError(f"{path.name} is damaged: its checksum does not fit its content")
    if version != FORMAT_VERSION:
        raise SessionError(f"{path.name} has format {version}, this version reads format {FORMAT_VERSION}")
    if named_by_digest and path.stem != name_of(digest):
        raise SessionError(f"{path.name} holds the content of another file")
    header = json.loads(data[fixed : fixed + length].tobytes())
    return Sealed(header, data[fixed + length : -DIGEST_BYTES])
