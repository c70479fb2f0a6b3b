"""The whole of a pull: ask, plan, refuse what cannot work, fetch, verify, record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.checkpoint import Checkpoint
from sterna.checkpoint.checkpoint import INDEX
from sterna.config import ModelConfig, read_model_config
from sterna.errors import CheckpointError, ConfigError, OutOfMemoryError, SternaError, UsageError
from sterna.fit import Hardware, Plan, make_plan, this_machine
from sterna.hub.meter import Meter
from sterna.hub.record import PulledFile, Record, read_record
from sterna.hub.repository import HubFile, Repository, read_repository
from sterna.hub.selection import (
    GgufModel,
    gguf_models,
    is_weight,
    named_files,
    shards,
    text_files,
    without_tensors,
)
from sterna.hub.transfer import PARTIAL, Transfer, make_client

if TYPE_CHECKING:
    import httpx

OFFICIAL_REPOSITORY = "Qwen/Qwen3.6-35B-A3B"
# Left free on the disk, for the system and for what we write beside the weights.
DISK_RESERVE_BYTES = 256 << 20
DEFAULT_CONTEXT = 32_768
GGUF_ARCHITECTURE = "qwen35moe"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What to pull and where to. ``into`` is a directory for this checkpoint; ``files`` are patterns of file names."""

    models: Path
    repo_id: str = OFFICIAL_REPOSITORY
    revision: str | None = None
    files: tuple[str, ...] = ()
    text_only: bool = False
    ignore_fit: bool = False
    dry_run: bool = False
    into: Path | None = None
    context: int = DEFAULT_CONTEXT
    hardware: Hardware | None = None
    endpoint: str | None = None
    workers: int = 4

    @property
    def directory(self) -> Path:
        """Where the files go: ``OWNER--NAME`` below ``models`` unless ``into`` says otherwise."""
        return self.into or self.models / self.repo_id.replace("/", "--")


@dataclass(frozen=True, slots=True)
class PullResult:
    """What came of it. ``fetched_bytes`` were transferred now; ``plan`` is ``None`` where only named files were pulled."""

    directory: Path
    record: Record
    fetched_bytes: int
    plan: Plan | None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Pull:
    """A pull in progress; ``say`` gets lines for people, ``progress`` the meter of the transfers when they begin."""

    request: PullRequest
    say: Callable[[str], None]
    progress: Callable[[Meter], None] = lambda meter: None
    sleep: Callable[[float], None] | None = None
    notes: list[str] = field(default_factory=list)

    def run(self) -> PullResult:
        """Do it; see `pull`."""
        request = self.request
        repository = read_repository(
            request.repo_id, request.revision, endpoint=request.endpoint, sleep=self.sleep or time.sleep
        )
        self._introduce(repository)
        with make_client() as client:
            small = text_files(repository, text_only=request.text_only)
            hashes = self._fetch(repository, client, small, quiet=True)
            weights, left_out, gguf = self._weights(repository)
            plan = self._check_fit(weights)
            self._check_disk(weights)
            if request.dry_run:
                record = self._record(repository, [*small, *weights], {}, gguf)
                return PullResult(request.directory, record, 0, plan, tuple(self.notes))
            missing = sum(file.size for file in weights if not _is_here(request.directory, file))
            hashes |= self._fetch(repository, client, weights, quiet=False)
        self._finish(left_out, gguf)
        record = self._record(repository, [*small, *weights], hashes, gguf)
        record.write(request.directory)
        return PullResult(request.directory, record, missing, plan, tuple(self.notes))

    def _introduce(self, repository: Repository) -> None:
        self.say(f"{repository.repo_id} at {repository.commit[:12]} from {repository.endpoint}")
        self.say(f"licence: {repository.licence or 'the repository names none; read its README.md before you use it'}")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)

    def _weights(self, repository: Repository) -> tuple[list[HubFile], dict[str, str], str | None]:
        """Weight files, tensors left out, and the GGUF file where the model is one."""
        request = self.request
        if request.files:
            chosen = named_files(repository, request.files)
            gguf = [model for model in gguf_models(repository) if model.files[0] in chosen]
            return chosen, {}, gguf[0].files[0].path if gguf else None
        index = (request.directory / INDEX).read_bytes() if repository.file(INDEX) else None
        models = gguf_models(repository)
        if models and repository.gguf_architecture not in (None, GGUF_ARCHITECTURE):
            raise ConfigError(
                f"{repository.repo_id} holds GGUF models of the architecture {repository.gguf_architecture}, "
                f"allowed is {GGUF_ARCHITECTURE}",
                hint="sterna runs Qwen3.6-35B-A3B and models of the same architecture only",
            )
        if models and index is None and repository.file("model.safetensors") is None:
            model = self._choose_gguf(repository, models)
            return list(model.files), {}, model.files[0].path
        read_model_config(request.directory)
        files, left_out = shards(repository, index, text_only=request.text_only)
        if request.text_only:
            saved = sum(f.size for f in repository.files if f.path in set(left_out.values()))
            self._note(
                f"text only: {saved / 1e9:.2f} GB of vision tensors left out"
                if left_out
                else "text only: no file holds vision tensors alone, so all weights are needed"
            )
        return files, left_out, None

    def _choose_gguf(self, repository: Repository, models: Sequence[GgufModel]) -> GgufModel:
        """The largest GGUF model that fits."""
        if len(models) == 1:
            return models[0]
        fitting = [model for model in models if self._plan_for(None, model.size).fits]
        if not fitting:
            smallest = models[-1]
            raise OutOfMemoryError(
                f"none of the {len(models)} models of {repository.repo_id} fits, the smallest is {smallest.name} "
                f"with {smallest.size / 1e9:.2f} GB",
                hint="name one with --file and --ignore-fit to have it anyway",
            )
        self._note(f"chose {fitting[0].name}: the largest of {len(models)} models that fits")
        return fitting[0]

    def _plan_for(self, config: ModelConfig | None, weight_bytes: int) -> Plan:
        from sterna.config import preset

        config = config or preset("qwen3.6-35b-a3b")
        context = min(self.request.context, config.text.max_position_embeddings)
        hardware = self.request.hardware or this_machine()
        return make_plan(config, hardware, weights="these files", context=context, weight_bytes=weight_bytes)

    def _check_fit(self, weights: Sequence[HubFile]) -> Plan | None:
        config_path = self.request.directory / "config.json"
        config = read_model_config(self.request.directory) if config_path.exists() else None
        size = sum(file.size for file in weights if is_weight(file) and "mmproj" not in file.path)
        if not size:
            return None
        plan = self._plan_for(config, size)
        need, have = plan.total_bytes, plan.available_bytes
        known = "unknown memory" if have is None else f"{have / 1e9:.2f} GB of memory"
        words = f"{need / 1e9:.2f} GB for the weights and {plan.context:,} tokens of context, {known} here"
        if plan.fits is False and not self.request.ignore_fit:
            raise OutOfMemoryError(
                f"this checkpoint does not fit: it takes {words}",
                hint="`sterna fit` shows what fits; with --ignore-fit you get it anyway, to quantise it or for another machine",
            )
        self._note(("does not fit, pulled all the same: " if plan.fits is False else "fits: ") + words)
        return plan

    def _check_disk(self, files: Sequence[HubFile]) -> None:
        directory = self.request.directory
        missing = sum(file.size - _have(directory, file) for file in files)
        free = shutil.disk_usage(directory).free
        if missing + DISK_RESERVE_BYTES > free:
            raise CheckpointError(
                f"the disk of {directory} has {free / 1e9:.2f} GB left, {(missing + DISK_RESERVE_BYTES) / 1e9:.2f} GB "
                "are needed",
                hint="free some space, or choose another place with --into DIR or STERNA_HOME",
            )
        self.say(f"{missing / 1e9:.2f} GB to fetch into {directory}")

    def _fetch(
        self, repository: Repository, client: httpx.Client, files: Sequence[HubFile], *, quiet: bool
    ) -> dict[str, str]:
        """SHA-256 of every file by path; the first failure stops the other transfers, which keep what they have."""
        meter = Meter(sum(file.size for file in files))
        transfer = Transfer(repository, self.request.directory, client, meter, sleep=self.sleep)
        if not quiet:
            self.progress(meter)
        with ThreadPoolExecutor(max_workers=max(1, self.request.workers)) as pool:
            futures = {pool.submit(transfer.fetch, file): file for file in files}
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = next((future for future in done if future.exception()), None)
            except BaseException:
                transfer.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            if failed is not None:
                transfer.stop.set()
                pool.shutdown(cancel_futures=True)
                failed.result()
            return {file.path: future.result() for future, file in futures.items()}

    def _finish(self, left_out: dict[str, str], gguf: str | None) -> None:
        """The index without tensors that were left out, and a look at every tensor's name, shape and place."""
        directory = self.request.directory
        if left_out:
            index = directory / INDEX
            index.write_bytes(without_tensors(index.read_bytes(), left_out))
        if not self.request.files and gguf is None:
            Checkpoint(directory)
        if gguf is not None:
            from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint

            GgufCheckpoint(directory / gguf)
        shutil.rmtree(directory / PARTIAL, ignore_errors=True)

    def _record(
        self, repository: Repository, files: Sequence[HubFile], hashes: dict[str, str], gguf: str | None
    ) -> Record:
        pulled = [PulledFile(f.path, f.size, hashes.get(f.path, ""), f.published_hash) for f in files]
        old = None if self.request.dry_run else read_record(self.request.directory)
        if old is not None and old.commit == repository.commit:
            # Files that were pulled one by one from the same commit belong together.
            names = {file.path for file in pulled}
            pulled = [*(file for file in old.files if file.path not in names), *pulled]
        return Record(
            repo_id=repository.repo_id, commit=repository.commit, source=repository.endpoint,
            licence=repository.licence, text_only=self.request.text_only, files=tuple(pulled), gguf=gguf,
        )  # fmt: skip


def pull(
    request: PullRequest,
    *,
    say: Callable[[str], None],
    progress: Callable[[Meter], None] = lambda meter: None,
    sleep: Callable[[float], None] | None = None,
) -> PullResult:
    """Pull a checkpoint; running it again goes on where it stopped and fetches nothing that is right already.

    Raises `OutOfMemoryError` where it does not fit into memory (unless ``ignore_fit``), `ConfigError` for another
    architecture, `CheckpointError` for everything that hub, network and disk refuse.
    """
    if request.context < 1 or request.workers < 1:
        raise UsageError(f"context and workers are {request.context} and {request.workers}, allowed is 1 or more")
    directory = request.directory
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {directory} ({error.strerror})", hint="choose with --into DIR"
        ) from error
    try:
        return Pull(request, say, progress, sleep).run()
    except SternaError:
        if not existed and not any(path.is_file() and is_large(path) for path in directory.rglob("*")):
            # A refusal before the weights leaves nothing behind.
            shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        if request.dry_run and not existed:
            shutil.rmtree(directory, ignore_errors=True)


def is_large(path: Path) -> bool:
    """Whether a file is worth keeping after a refusal."""
    return path.name.endswith((".safetensors", ".gguf")) and path.stat().st_size > 0


def _is_here(directory: Path, file: HubFile) -> bool:
    path = directory / file.path
    return path.is_file() and path.stat().st_size == file.size


def _have(directory: Path, file: HubFile) -> int:
    """Bytes of a file that need no more space."""
    if _is_here(directory, file):
        return file.size
    partial = directory / PARTIAL / file.path
    return min(partial.stat().st_size, file.size) if partial.is_file() else 0
