"""Features of images and videos by content: computed once, kept in memory and, with a directory, across restarts."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sterna.vision.media import Kind, MediaShape

Float32 = npt.NDArray[np.float32]
SUFFIX = ".npz"


@dataclass(frozen=True, slots=True)
class Features:
    """``values`` float32 [num_tokens, D] of one image or video of that shape."""

    shape: MediaShape
    values: Float32


class FeatureStore:
    """The least recently used go first, in memory beyond ``memory_bytes`` and in ``directory`` beyond ``disk_bytes``. Thread-safe.

    One directory belongs to one encoder: whoever opens it puts the encoder's fingerprint into its name. A file that is
    damaged or cannot be written is as good as none, since everything here can be computed again.
    """

    def __init__(
        self, directory: Path | None = None, *, memory_bytes: int = 256 << 20, disk_bytes: int = 1 << 30
    ) -> None:
        self.directory = directory
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes
        self._items: OrderedDict[bytes, Features] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> Features | None:
        """The features of a content, from memory or disk."""
        with self._lock:
            found = self._items.get(digest)
            if found is not None:
                self._items.move_to_end(digest)
                return found
        found = self._read(digest)
        if found is not None:
            self._keep(found)
        return found

    def put(self, features: Features) -> None:
        """Keep features that were computed just now."""
        self._keep(features)
        if self.directory is not None:
            with contextlib.suppress(OSError):
                self._write(features, self.directory)
                self._trim(self.directory)

    def _keep(self, features: Features) -> None:
        with self._lock:
            if features.shape.digest in self._items or features.values.nbytes > self.memory_bytes:
                return
            self._items[features.shape.digest] = features
            self._used += features.values.nbytes
            while self._used > self.memory_bytes:
                _, dropped = self._items.popitem(last=False)
                self._used -= dropped.values.nbytes

    def _read(self, digest: bytes) -> Features | None:
        if self.directory is None:
            return None
        path = self.directory / (digest.hex() + SUFFIX)
        try:
            with np.load(path, allow_pickle=False) as stored:
                grid = [int(each) for each in stored["grid_thw"]]
                shape = MediaShape(
                    _kind(str(stored["kind"])),
                    digest,
                    (grid[0], grid[1], grid[2]),
                    tuple(float(each) for each in stored["times"]),
                    int(stored["merge_size"]),
                )
                values = stored["values"]
            os.utime(path)
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
            return None
        if values.dtype != np.float32 or values.ndim != 2 or len(values) != shape.num_tokens:
            return None
        return Features(shape, values)

    def _write(self, features: Features, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        shape = features.shape
        handle, temporary = tempfile.mkstemp(dir=directory, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file,
                    kind=np.array(shape.kind),
                    grid_thw=np.array(shape.grid_thw, np.int64),
                    times=np.array(shape.times, np.float64),
                    merge_size=np.array(shape.merge_size),
                    values=features.values,
                )
            os.replace(temporary, directory / (shape.digest.hex() + SUFFIX))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _trim(self, directory: Path) -> None:
        files = [(path.stat(), path) for path in directory.glob("*" + SUFFIX)]
        used = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda each: each[0].st_mtime):
            if used <= self.disk_bytes:
                return
            path.unlink(missing_ok=True)
            used -= status.st_size


def _kind(text: str) -> Kind:
    if text not in ("image", "video"):
        raise ValueError(f"the kind is {text[:40]!r}, allowed are image and video")
    return "image" if text == "image" else "video"
