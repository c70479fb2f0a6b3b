"""Hashes: against the published ones of an official checkpoint, and against the record of the pull."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sterna.checkpoint.checkpoint import INDEX
from sterna.errors import CheckpointError
from sterna.hub.known import KnownCheckpoint, known_checkpoints
from sterna.hub.record import Record, read_record
from sterna.verify.checks import SKIP, Check, failed, verdict

DAMAGED_HINT = "pull the checkpoint again: files that are right are not fetched again"
# Files that say nothing about the model.
_NO_MATTER = ("README.md", "LICENSE", "configuration.json")


class Hashes:
    """SHA-256 of files, each computed once."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.directory = directory
        self._say = say
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str:
        """Hex digest of a file of the directory."""
        if name not in self._known:
            path = self.directory / name
            if path.stat().st_size > 1 << 30:
                self._say(f"hashing {name}")
            with path.open("rb") as file:
                self._known[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[name]


def file_checks(directory: Path, *, quick: bool, say: Callable[[str], None]) -> Iterator[Check]:
    """Hashes of all files that have a known one; with ``quick`` those of weights are left out, sizes are compared."""
    hashes = Hashes(directory, say)
    try:
        record = read_record(directory)
    except CheckpointError as error:
        yield failed("record", error)
        record = None
    official = identify(hashes)
    if official is None:
        yield Check(
            "published hashes", SKIP, "config.json is that of no official checkpoint whose hashes are known",
        )  # fmt: skip
    else:
        yield _published(hashes, official, record, quick=quick)
    if record is not None:
        yield _recorded(hashes, record, quick=quick)


def identify(hashes: Hashes) -> KnownCheckpoint | None:
    """The official checkpoint to which the configuration belongs."""
    if not (hashes.directory / "config.json").is_file():
        return None
    found = hashes.of("config.json")
    return next((each for each in known_checkpoints() if each.sha256.get("config.json") == found), None)


def _published(hashes: Hashes, official: KnownCheckpoint, record: Record | None, *, quick: bool) -> Check:
    problems, compared, left_out = [], 0, []
    for name, expected in official.sha256.items():
        path = hashes.directory / name
        if not path.is_file():
            if name.endswith(".safetensors") and not (record and record.text_only):
                problems.append(f"{name} is missing")
            continue
        if name in _NO_MATTER or (name == INDEX and record and record.text_only):
            continue
        size = official.sizes.get(name)
        if size is not None and path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size:,} bytes, published are {size:,}")
        elif quick and name.endswith(".safetensors"):
            left_out.append(name)
        elif hashes.of(name) != expected:
            problems.append(f"{name} has SHA-256 {hashes.of(name)[:16]}…, published is {expected[:16]}…")
        compared += 1
    words = f"{compared} files are those of {official.repo_id} at {official.commit[:12]}"
    if left_out:
        words += f" ({len(left_out)} of them by size only: --quick)"
    return verdict("published hashes", problems, words, hint=DAMAGED_HINT)


def _recorded(hashes: Hashes, record: Record, *, quick: bool) -> Check:
    problems, compared = [], 0
    for file in record.files:
        path = hashes.directory / file.path
        if not path.is_file():
            problems.append(f"{file.path} is missing")
        elif file.path == INDEX and record.text_only:
            continue
        elif path.stat().st_size != file.size:
            problems.append(f"{file.path} has {path.stat().st_size:,} bytes, pulled were {file.size:,}")
        elif not (quick and file.path.endswith((".safetensors", ".gguf"))) and hashes.of(file.path) != file.sha256:
            problems.append(f"{file.path} has changed since it was pulled")
        else:
            compared += 1
    return verdict(
        "record of the pull", problems, f"{compared} files as pulled from {record.source}", hint=DAMAGED_HINT
    )


def layout_check(directory: Path) -> Check:
    """Files that cannot belong together: two indexes, weights that no index names, halves of two formats."""
    problems = []
    indexes = sorted(path.name for path in directory.glob("*.index.json"))
    if len(indexes) > 1:
        problems.append(f"there are {len(indexes)} index files: {', '.join(indexes)}")
    weights = sorted(path.name for path in directory.glob("*.safetensors"))
    if indexes and "model.safetensors" in weights:
        problems.append("model.safetensors lies beside an index")
    if weights and any(directory.glob("*.gguf")):
        problems.append("safetensors and GGUF files lie in one directory")
    if (directory / ".partial").exists():
        problems.append("an unfinished pull lies in .partial")
    hint = "keep the files of one checkpoint only"
    return verdict("directory", problems, f"{len(weights)} weight files, one model", hint=hint)
