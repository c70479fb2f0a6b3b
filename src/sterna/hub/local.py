"""A pull without network: files that are on a disk already, verified against every hash that can be found, then recorded.

Hashes come from the names of a hub cache (``blobs/SHA256``), from a ``SHA256SUMS`` file beside the files, and from the
table of official checkpoints.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sterna.checkpoint import Checkpoint
from sterna.checkpoint.checkpoint import INDEX, SINGLE
from sterna.errors import CheckpointError, UsageError
from sterna.hub.known import known_checkpoint
from sterna.hub.meter import Meter
from sterna.hub.pull import DISK_RESERVE_BYTES, PullResult
from sterna.hub.record import PulledFile, Record
from sterna.hub.repository import HubFile
from sterna.hub.selection import TEXT_FILES, VISION_FILES, read_weight_map
from sterna.hub.transfer import CHUNK_BYTES, PARTIAL, Digest

SUMS = "SHA256SUMS"
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_SHA1 = re.compile(r"[0-9a-f]{40}")


def pull_directory(
    source: Path,
    models: Path,
    *,
    repo_id: str | None = None,
    into: Path | None = None,
    say: Callable[[str], None],
    progress: Callable[[Meter], None] = lambda meter: None,
) -> PullResult:
    """Take over a checkpoint from a directory: files are linked where disk and file system allow it, else copied.

    ``repo_id`` says what it claims to be, which brings the published hashes of an official checkpoint into play.
    Raises `CheckpointError` for a missing file or a wrong hash, before anything is recorded.
    """
    if not source.is_dir():
        raise UsageError(f"--from is {source}, allowed is a directory", hint="it must hold config.json and the weights")
    target = into or models / (repo_id or source.resolve().name).replace("/", "--")
    if target.resolve() == source.resolve():
        raise UsageError(f"--from and the target are both {source}", hint="choose another target with --into DIR")
    expected = _expected_hashes(source, repo_id)
    files = [_described(source, name, expected) for name in _names(source)]
    _check_space(source, target, files)
    meter = Meter(sum(file.size for file in files))
    progress(meter)
    notes: list[str] = []
    partial = target / PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    hashes = {file.path: _take(source / file.path, partial / file.path, file, meter) for file in files}
    for file in files:
        (partial / file.path).replace(target / file.path)
    Checkpoint(target)
    unknown = [file.path for file in files if file.published_hash is None]
    if unknown:
        notes.append(f"no published hash is known of {len(unknown)} of {len(files)} files, {unknown[0]} among them")
        say(notes[0])
    pulled = tuple(PulledFile(f.path, f.size, hashes[f.path], f.published_hash) for f in files)
    record = Record(
        repo_id=repo_id or source.resolve().name, commit=None, source=str(source.resolve()), licence=_licence(source),
        text_only=False, files=pulled,
    )  # fmt: skip
    record.write(target)
    shutil.rmtree(partial, ignore_errors=True)
    return PullResult(target, record, 0, None, tuple(notes))


def _names(source: Path) -> list[str]:
    """Configuration files that are there, and all weights that the index names."""
    names = [name for name in (*TEXT_FILES, *VISION_FILES) if (source / name).is_file()]
    if "config.json" not in names:
        raise CheckpointError(f"{source} has no config.json", hint="give the directory that holds config.json")
    if INDEX in names:
        shards = sorted(set(read_weight_map((source / INDEX).read_bytes(), where=str(source / INDEX)).values()))
    else:
        shards = [SINGLE]
    for shard in shards:
        if shard != Path(shard).name:
            raise CheckpointError(f"{INDEX} names {shard[:200]!r}, allowed is a file beside it")
        if not (source / shard).is_file():
            raise CheckpointError(f"{source} lacks {shard}", hint="copy all files of the checkpoint, then try again")
    return names + shards


def _expected_hashes(source: Path, repo_id: str | None) -> dict[str, str]:
    """Name -> SHA-256, from the table of official checkpoints and from SHA256SUMS; both must agree."""
    known = known_checkpoint(repo_id) if repo_id else None
    expected = dict(known.sha256) if known else {}
    sums = source / SUMS
    if sums.is_file():
        for line in sums.read_text(errors="replace").splitlines():
            match = _SUM_LINE.fullmatch(line.strip())
            if match and expected.setdefault(match[2].removeprefix("./"), match[1]) != match[1]:
                raise CheckpointError(f"{sums} gives {match[2]} another hash than is published for {repo_id}")
    return expected


def _described(source: Path, name: str, expected: dict[str, str]) -> HubFile:
    path = source / name
    sha256, blob = expected.get(name), None
    if path.is_symlink():
        # In a hub cache the files are links to blobs that are named by their hash.
        stored = path.resolve().name
        sha256 = sha256 or (stored if _SHA256.fullmatch(stored) else None)
        blob = stored if _BLOB_SHA1.fullmatch(stored) else None
    return HubFile(name, path.stat().st_size, sha256, blob)


def _check_space(source: Path, target: Path, files: list[HubFile]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if (source / files[0].path).resolve().stat().st_dev == target.stat().st_dev:
        return
    needed, free = sum(file.size for file in files) + DISK_RESERVE_BYTES, shutil.disk_usage(target).free
    if needed > free:
        raise CheckpointError(
            f"the disk of {target} has {free / 1e9:.2f} GB left, {needed / 1e9:.2f} GB are needed",
            hint="free some space, or choose another place with --into DIR or STERNA_HOME",
        )


def _take(source: Path, target: Path, file: HubFile, meter: Meter) -> str:
    """Link or copy one file and verify what arrived; returns its SHA-256."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
    digest = Digest(file)
    with target.open("rb") as content:
        while data := content.read(CHUNK_BYTES):
            digest.update(data)
            meter.add(len(data))
    if problem := digest.mismatch():
        target.unlink()
        raise CheckpointError(f"{source} has {problem}", hint="the file is damaged or another one: copy it again")
    return digest.sha256()


def _licence(source: Path) -> str | None:
    """The licence that the model card names in its head."""
    card = source / "README.md"
    if not card.is_file():
        return None
    found = re.search(r"^license:\s*(\S+)\s*$", card.read_text(errors="replace")[:4096], re.MULTILINE)
    return found[1] if found else None
