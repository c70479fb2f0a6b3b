"""What a hub says about a repository, through ``huggingface_hub``: its commit, licence and files with their hashes.

``HF_ENDPOINT`` (a mirror), ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are that library's variables and act as documented there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from sterna.errors import CheckpointError, UsageError
from sterna.hub.retry import RETRY_STATUS, Waits, retry_after

OFFLINE_HINT = "check the network and HF_ENDPOINT, or pull from a directory: `sterna pull --from DIR`"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; large ones come with ``sha256``, small ones with git's ``blob_sha1``."""

    path: str
    size: int
    sha256: str | None = None
    blob_sha1: str | None = None

    @property
    def published_hash(self) -> str | None:
        """The hash that the hub publishes, with its kind, as ``sha256:…`` or ``git-sha1:…``."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"git-sha1:{self.blob_sha1}" if self.blob_sha1 else None


@dataclass(frozen=True, slots=True)
class Repository:
    """One commit of a model repository."""

    repo_id: str
    commit: str
    endpoint: str
    licence: str | None
    files: tuple[HubFile, ...]
    gguf_architecture: str | None = None

    def file(self, path: str) -> HubFile | None:
        """The file of that path."""
        return next((file for file in self.files if file.path == path), None)

    def url(self, path: str) -> str:
        """Where the hub serves a file of this commit."""
        return f"{self.endpoint}/{self.repo_id}/resolve/{self.commit}/{quote(path)}"


def read_repository(
    repo_id: str,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Repository:
    """Ask the hub for the newest commit of a repository, or of the branch, tag or commit ``revision``.

    Waits and asks again when the hub is busy. Raises `CheckpointError` where it refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    waits = Waits(sleep)
    while True:
        with hub_errors(repo_id, revision, api.endpoint):
            try:
                info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=30)
                break
            except Exception as error:
                response = getattr(error, "response", None)
                if response is None or response.status_code not in RETRY_STATUS:
                    raise
                if not waits.wait(retry_after(response.headers)):
                    raise CheckpointError(
                        f"{api.endpoint} refused the list of files {waits.attempts} times (HTTP {response.status_code})",
                        hint="wait some minutes and run the same command again",
                    ) from error
    return _repository(repo_id, info, str(api.endpoint))


def _repository(repo_id: str, info: Any, endpoint: str) -> Repository:
    files = tuple(_file(sibling) for sibling in info.siblings or ())
    tags = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
    if not info.sha or not files:
        raise CheckpointError(f"{endpoint} says nothing about the files of {repo_id}", hint=OFFLINE_HINT)
    gguf = getattr(info, "gguf", None)
    architecture = gguf.get("architecture") if isinstance(gguf, dict) else None
    licence = tags[0] if tags else None
    return Repository(repo_id, info.sha, endpoint.rstrip("/"), licence, files, architecture)


def _file(sibling: Any) -> HubFile:
    path = PurePosixPath(sibling.rfilename)
    if path.is_absolute() or ".." in path.parts or "\\" in sibling.rfilename or "\0" in sibling.rfilename:
        raise CheckpointError(f"the repository holds a file {sibling.rfilename[:200]!r}, allowed are paths below it")
    sha256 = sibling.lfs["sha256"] if sibling.lfs else None
    if sibling.size is None:
        raise CheckpointError(f"the hub does not say how large {sibling.rfilename} is")
    return HubFile(str(path), int(sibling.size), sha256, sibling.blob_id)


@contextmanager
def hub_errors(repo_id: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Turn what ``huggingface_hub`` raises into our errors, one sentence and a hint each."""
    from huggingface_hub import errors

    try:
        yield
    except (CheckpointError, UsageError):
        raise
    except errors.HFValidationError as error:
        raise UsageError(
            f"{repo_id!r} is not the name of a repository", hint="it has the form OWNER/NAME, as Qwen/Qwen3.6-35B-A3B"
        ) from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repo_id} is gated: its owners ask for an agreement first",
            hint=f"agree at {endpoint}/{repo_id}, then set HF_TOKEN to a token of that account",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repo_id} has no revision {revision!r}",
            hint="give a branch, tag or commit of it, or leave --revision out",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{endpoint} has no repository {repo_id}, or it is private",
            hint="check the spelling; for a private one set HF_TOKEN to a token that may read it",
        ) from error
    except errors.HfHubHTTPError as error:
        raise CheckpointError(f"{endpoint} answered HTTP {error.response.status_code}", hint=OFFLINE_HINT) from error
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(
            "HF_HUB_OFFLINE is set, so the hub is not asked", hint="unset it, or pull from a directory: `--from DIR`"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"cannot reach {endpoint} ({type(error).__name__}: {str(error)[:200]})", hint=OFFLINE_HINT
        ) from error
