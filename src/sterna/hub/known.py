"""Published SHA-256 hashes of official files: data/known_hashes.toml, one table per repository and commit."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """Hashes of the files of one commit; ``sizes`` of those whose size is published too."""

    repo_id: str
    commit: str
    sha256: Mapping[str, str]
    sizes: Mapping[str, int]


@cache
def known_checkpoints() -> tuple[KnownCheckpoint, ...]:
    """All of the table."""
    table = tomllib.loads((files("sterna") / "data" / "known_hashes.toml").read_text())
    return tuple(
        KnownCheckpoint(e["repo_id"], e["commit"], e["sha256"], e.get("sizes", {})) for e in table["checkpoint"]
    )


def known_checkpoint(repo_id: str, commit: str | None = None) -> KnownCheckpoint | None:
    """The entry of a repository, of the given commit if one is given."""
    for entry in known_checkpoints():
        if entry.repo_id == repo_id and commit in (None, entry.commit):
            return entry
    return None
