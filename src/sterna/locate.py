"""Which checkpoint and which backend are used when nobody says, and why."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import sterna
from sterna import env
from sterna.backends.base import Backend
from sterna.backends.host_memory import available_host_bytes
from sterna.checkpoint.opening import is_gguf
from sterna.errors import BackendError, CheckpointError, UsageError
from sterna.hub.record import pulled_checkpoints

BACKENDS = {
    "native": ("sterna.backends.native", "NativeBackend"),
    "torch": ("sterna.backends.torch", "TorchBackend"),
    "numpy": ("sterna.backends.numpy", "NumpyBackend"),
}
STERNULA_DIRECTORY = Path(sterna.__file__).parent / "data" / "sternula"


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A checkpoint directory or GGUF file, a short name for it and the words that say how it was found."""

    path: Path
    name: str
    description: str


def locate_model(model: Path | None = None) -> LocatedModel:
    """``model``, else ``STERNA_MODEL``, else the newest pulled checkpoint that fits, else Sternula from the package."""
    for directory, why in ((model, "as asked"), (env.get("STERNA_MODEL"), "from STERNA_MODEL")):
        if directory is not None:
            return _given(Path(directory).expanduser(), why)
    pulled, refused = _newest_that_fits(env.home() / "models")
    if pulled is not None:
        return pulled
    if (STERNULA_DIRECTORY / "config.json").is_file():
        why = f"Sternula (the small model in the package{'; ' if refused else ''}{'; '.join(refused)})"
        return LocatedModel(STERNULA_DIRECTORY, "sternula", why)
    raise UsageError(
        "there is no model: none was given, none is pulled and this installation has no Sternula",
        hint="name a checkpoint directory: `--model DIR`, or get one: `sterna pull`",
    )


def _newest_that_fits(models: Path) -> tuple[LocatedModel | None, list[str]]:
    """The newest pulled checkpoint whose weights fit into free memory, and why newer ones were passed over."""
    refused: list[str] = []
    free = available_host_bytes()
    for pulled in pulled_checkpoints(models):
        name = pulled.directory.name
        if pulled.record is not None and pulled.record.gguf:
            refused.append(f"{name} is a GGUF file: name it with --model")
        elif free is not None and pulled.weight_bytes > free:
            refused.append(
                f"{name} does not fit: {pulled.weight_bytes / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB of free memory"
            )
        else:
            others = f"; {'; '.join(refused)}" if refused else ""
            words = f"{name} (the newest that fits of {models}{others})"
            return LocatedModel(pulled.directory, name, words), refused
    return None, refused


def _given(path: Path, why: str) -> LocatedModel:
    if is_gguf(path) and path.is_file():
        return LocatedModel(path, path.resolve().stem, f"{path} ({why})")
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint, it has no config.json",
            hint="give the directory that holds config.json and the *.safetensors files, or a .gguf file",
        )
    return LocatedModel(path, path.resolve().name, f"{path} ({why})")


def make_backend(name: str = "auto", *, float32_cache: bool = False) -> tuple[Backend, str]:
    """An empty backend and the words that say which and why; ``auto``: the first of native, torch, numpy that runs.

    ``float32_cache`` keeps keys and values unrounded, for comparisons with other engines.

    Raises `BackendError` when the named one cannot run here, `UsageError` for an unknown name.
    """
    if name != "auto":
        if name not in BACKENDS:
            raise UsageError(f"backend is {name!r}, allowed is auto, {', '.join(BACKENDS)}")
        return _construct(name, float32_cache=float32_cache), f"backend {name} (as asked)"
    refused: list[str] = []
    for candidate in BACKENDS:
        try:
            backend = _construct(candidate, float32_cache=float32_cache)
        except BackendError as error:
            refused.append(error.message)
            continue
        return backend, f"backend {candidate}" + (f" ({'; '.join(refused)})" if refused else "")
    raise BackendError("no backend runs here: " + "; ".join(refused))


def _construct(name: str, *, float32_cache: bool) -> Backend:
    module, class_name = BACKENDS[name]
    # numpy and torch never round what they cache.
    options = {"kv_dtype": "float32"} if float32_cache and name == "native" else {}
    try:
        backend: Backend = getattr(importlib.import_module(module), class_name)(**options)
    except ImportError as error:
        hint = "pip install 'sterna[gpu]'" if name == "torch" else "build the extension: pip install ."
        raise BackendError(f"backend {name} cannot be used: {error}", hint=hint) from error
    return backend
