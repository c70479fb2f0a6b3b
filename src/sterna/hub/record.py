"""What was pulled: one `sterna-pull.json` per directory, written last, so that an unfinished pull is never taken for one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sterna.errors import CheckpointError
from sterna.hub.transfer import PARTIAL

RECORD = "sterna-pull.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class PulledFile:
    """A file as it was verified; ``published`` is the hash it was compared with, ``None`` if none is known."""

    path: str
    size: int
    sha256: str
    published: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """Where a checkpoint came from, and its files. ``gguf`` is the path of the model file where it is one."""

    repo_id: str
    commit: str | None
    source: str
    licence: str | None
    text_only: bool
    files: tuple[PulledFile, ...]
    gguf: str | None = None
    pulled_at: float = field(default_factory=time.time)

    def write(self, directory: Path) -> None:
        """Write the record of a complete pull; it appears whole or not at all."""
        partial = directory / (RECORD + ".new")
        partial.write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n")
        partial.replace(directory / RECORD)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A complete checkpoint: its directory, and its record unless somebody put it there by hand."""

    directory: Path
    record: Record | None
    time: float

    @property
    def model_path(self) -> Path:
        """What ``--model`` takes: the directory, or the GGUF file."""
        return self.directory / self.record.gguf if self.record and self.record.gguf else self.directory

    @property
    def weight_bytes(self) -> int:
        """Bytes of the files that hold the language model."""
        names = {file.path for file in self.record.files} if self.record else None
        return sum(
            path.stat().st_size
            for path in self.directory.rglob("*")
            if path.suffix in (".safetensors", ".gguf") and PARTIAL not in path.parts
            and (names is None or str(path.relative_to(self.directory)) in names) and "mmproj" not in path.name
        )  # fmt: skip


def read_record(directory: Path) -> Record | None:
    """The record of a directory, ``None`` without one; `CheckpointError` if it is damaged."""
    path = directory / RECORD
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content.pop("version") != VERSION:
            raise ValueError("it is of another version")
        files = tuple(PulledFile(**each) for each in content.pop("files"))
        return Record(files=files, **content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error})",
            hint="pull the checkpoint again; files that are right are not fetched again",
        ) from error


def pulled_checkpoints(models: Path) -> list[Pulled]:
    """Complete checkpoints below a directory, newest first. One with a `.partial` directory and no record is unfinished."""
    return sorted(_found(models), key=lambda pulled: -pulled.time)


def _found(models: Path) -> Iterator[Pulled]:
    for directory in sorted(models.glob("*/")):
        record = read_record(directory)
        if record is not None:
            yield Pulled(directory, record, record.pulled_at)
        elif (directory / "config.json").is_file() and not (directory / PARTIAL).exists():
            yield Pulled(directory, None, (directory / "config.json").stat().st_mtime)
