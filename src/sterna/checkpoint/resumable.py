"""Write one large file tensor by tensor, in bounded memory, in several threads, and go on after a kill where it stopped.

While the file grows it is called ``NAME.partial``; ``NAME.journal`` holds one JSON line per finished tensor, the first line the
digest of everything that decides the bytes. On resumption the finished tensors are hashed again, so a page that never reached
the disk is found and written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from sterna.errors import CheckpointError, UsageError
from sterna.quant.base import Bytes

_HASH_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive bytes of a tensor, and the sums over its weights of squared errors and of squares."""

    data: Bytes
    squared_error: float = 0.0
    squared_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the file; ``pieces`` yields functions whose results, one after another, are its ``nbytes`` bytes."""

    name: str
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    weighted: bool
    pieces: Callable[[], Iterable[Callable[[], Piece]]]


@dataclass(frozen=True, slots=True)
class Record:
    """What the manifest says of a tensor; ``error`` is |W - Q(W)| / |W|, ``weighted`` whether importance was used."""

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    sha256: str
    error: float
    weighted: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a write has come; ``done_bytes`` of ``total_bytes`` of tensors, ``resumed`` if this one was there already."""

    name: str
    format: str
    done_bytes: int
    total_bytes: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How to write: threads, what to call after every tensor, and ``source_digest``, which says that the bytes are the same.

    Without a ``source_digest`` nothing is resumed.
    """

    num_threads: int = 1
    source_digest: str | None = None
    progress: Callable[[Progress], None] | None = None


def write_resumable(path: Path, head: bytes, jobs: Sequence[Job], *, size: int, options: WriteOptions) -> list[Record]:
    """Write ``head`` and all jobs into a file of ``size`` bytes; it gets its name only when it is complete.

    Raises `UsageError` if another source or recipe left an unfinished file there, `CheckpointError` if the disk is too small.
    """
    partial = path.with_name(path.name + ".partial")
    journal = _Journal(path.with_name(path.name + ".journal"), _digest(head, options.source_digest))
    known = journal.open(resumable=options.source_digest is not None and partial.exists())
    _check_space(partial, size)
    with partial.open("r+b" if known else "w+b") as file, ThreadPoolExecutor(options.num_threads) as pool:
        file.truncate(size)
        file.write(head)
        records, done, total = [], 0, sum(job.nbytes for job in jobs)
        for job in jobs:
            record = known.get(job.name)
            resumed = record is not None and _hash_of(file, job) == record.sha256
            if record is None or not resumed:
                record = _write_job(file, job, pool, ahead=2 * options.num_threads)
                journal.add(record)
            records.append(record)
            done += job.nbytes
            if options.progress is not None:
                options.progress(Progress(job.name, job.format, done, total, resumed))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    journal.close()
    return records


def write_manifest(path: Path, records: Iterable[Record], **facts: Any) -> None:
    """Write the manifest as JSON: ``facts``, then one entry per tensor."""
    content = {**facts, "tensors": {record.name: _entry(record) for record in records}}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _entry(record: Record) -> dict[str, Any]:
    entry = asdict(record)
    del entry["name"]
    return {**entry, "shape": list(record.shape), "error": float(f"{record.error:.6g}")}


class _Journal:
    """The finished tensors of an unfinished file."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self._file: IO[str] | None = None

    def open(self, *, resumable: bool) -> dict[str, Record]:
        """Records of an earlier run, empty if there is nothing to resume."""
        known: dict[str, Record] = {}
        if resumable and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            if lines and lines[0] != self.digest:
                raise UsageError(
                    f"{self.path} belongs to an unfinished file of another model, recipe or calibration",
                    hint="finish that one with the same arguments, or remove it and its .partial file",
                )
            known = {record.name: record for record in map(_parse_record, lines[1:]) if record is not None}
        self._file = self.path.open("w", encoding="utf-8")
        self._line(self.digest)
        for record in known.values():
            self._line(json.dumps(asdict(record)))
        return known

    def add(self, record: Record) -> None:
        """Note a finished tensor."""
        self._line(json.dumps(asdict(record)))

    def close(self) -> None:
        """The file is complete: nothing is left to resume."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _line(self, text: str) -> None:
        assert self._file is not None
        self._file.write(text + "\n")
        self._file.flush()


def _parse_record(line: str) -> Record | None:
    """A line, or ``None`` for one that a kill cut off."""
    try:
        fields = json.loads(line)
        return Record(**{**fields, "shape": tuple(fields["shape"])})
    except (ValueError, TypeError, KeyError):
        return None


def _digest(head: bytes, source: str | None) -> str:
    return hashlib.sha256(head + (source or "").encode()).hexdigest()


def _check_space(partial: Path, size: int) -> None:
    # A resumed file is sparse where nothing has been written yet, so its blocks count and not its length.
    written = partial.stat().st_blocks * 512 if partial.exists() else 0
    free = shutil.disk_usage(partial.parent).free
    if size - written > free:
        raise CheckpointError(
            f"{partial.parent} has {free:,} bytes free, the file takes {size - written:,} more",
            hint="choose a directory with more room, or a smaller recipe",
        )


def _hash_of(file: IO[bytes], job: Job) -> str:
    digest = hashlib.sha256()
    file.seek(job.offset)
    left = job.nbytes
    while left > 0:
        data = file.read(min(left, _HASH_BYTES))
        if not data:
            break
        digest.update(data)
        left -= len(data)
    return digest.hexdigest()


def _write_job(file: IO[bytes], job: Job, pool: ThreadPoolExecutor, *, ahead: int) -> Record:
    digest, written, error, norm = hashlib.sha256(), 0, 0.0, 0.0
    file.seek(job.offset)
    for piece in _in_order(pool, job.pieces(), ahead):
        data = np.ascontiguousarray(piece.data).reshape(-1).view(np.uint8).data
        file.write(data)
        digest.update(data)
        written += len(data)
        error += piece.squared_error
        norm += piece.squared_norm
    if written != job.nbytes:
        raise AssertionError(f"{job.name} came to {written} bytes, planned were {job.nbytes}")
    # Journal lines must not run ahead of what other processes see of the file.
    file.flush()
    relative = (error / norm) ** 0.5 if norm > 0 else 0.0
    return Record(job.name, job.format, job.shape, job.nbytes, digest.hexdigest(), relative, job.weighted)


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], Piece]], ahead: int) -> Iterator[Piece]:
    """Results in order, with a bounded number of tasks under way."""
    waiting: deque[Future[Piece]] = deque()
    source = iter(tasks)
    try:
        waiting.extend(pool.submit(task) for task in islice(source, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(task) for task in islice(source, 1))
    finally:
        for future in waiting:
            future.cancel()


__all__ = ["Job", "Piece", "Progress", "Record", "WriteOptions", "write_manifest", "write_resumable"]
