"""All checks of one checkpoint, cheapest first; what cannot be checked is skipped with its reason, never passed over."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sterna.backends.host_memory import available_host_bytes
from sterna.checkpoint import Checkpoint
from sterna.config import ModelConfig, read_model_config
from sterna.config.fields import load_json
from sterna.errors import SternaError, UsageError
from sterna.verify.checks import FAIL, PASS, SKIP, Check, failed
from sterna.verify.files import file_checks, layout_check
from sterna.verify.numeric import (
    Layer,
    LayerEngine,
    OpSetLayers,
    TransformersLayers,
    all_layers,
    compare,
    layer_bytes,
    numeric_checks,
)
from sterna.verify.tensors import finite_check, tensor_checks
from sterna.verify.vectors import vector_checks

REFERENCES = ("auto", "transformers", "numpy")
DEFAULT_TOKENS = 48
SAMPLE_TEXT = (
    "def mean(values):\n    return sum(values) / len(values)\n\nThe tern flies from pole to pole; das Quadrat von 12 ist "
    "144, 北极燕鸥 — naïve, 3.14159, `x += 1` and <b>bold</b>.\n"
)


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What to verify and how thoroughly. ``layers`` are those to compare, by default all, () for none; ``quick`` samples."""

    directory: Path
    quick: bool = False
    backend: str = "auto"
    reference: str = "auto"
    tokens: int = DEFAULT_TOKENS
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.reference not in REFERENCES:
            raise UsageError(f"reference is {self.reference!r}, allowed is {', '.join(REFERENCES)}")
        if self.tokens < 1:
            raise UsageError(f"tokens is {self.tokens}, allowed is 1 or more")


def verify(request: VerifyRequest, *, say: Callable[[str], None]) -> Iterator[Check]:
    """The checks one after the other, as they are made; ``say`` gets lines about the progress."""
    directory = request.directory
    yield layout_check(directory)
    yield from file_checks(directory, quick=request.quick, say=say)
    try:
        config = read_model_config(directory)
        yield Check("configuration", PASS, _described(config))
        checkpoint = Checkpoint(directory, config)
    except SternaError as error:
        yield failed("checkpoint", error)
        return
    yield from tensor_checks(checkpoint)
    try:
        yield from vector_checks(directory, config)
    except SternaError as error:
        yield failed("tokenizer and template", error)
    if request.quick:
        yield Check("values", SKIP, "not read with --quick")
    else:
        finite = finite_check(checkpoint, say)
        yield finite
        if finite.status == FAIL:
            return
    yield from _numeric(request, checkpoint, say)


def _described(config: ModelConfig) -> str:
    text = config.text
    return (
        f"{text.num_hidden_layers} layers ({text.layer_types.count('full_attention')} with attention), "
        f"hidden size {text.hidden_size}, {text.vocab_size:,} rows of embedding"
    )


def _numeric(request: VerifyRequest, checkpoint: Checkpoint, say: Callable[[str], None]) -> Iterator[Check]:
    if request.layers == ():
        yield Check("layers", SKIP, "no layers were asked for")
        return
    need, free = layer_bytes(checkpoint), available_host_bytes()
    if free is not None and need > free:
        yield Check(
            "layers", SKIP, f"comparing one layer takes up to {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )
        return
    from sterna.locate import make_backend

    try:
        backend, why = make_backend(request.backend, float32_cache=True)
        engine = OpSetLayers(backend.ops, checkpoint)  # type: ignore[attr-defined]
        reference = _reference(request, checkpoint)
        say(f"comparing {why} with {reference.name}")
        result = compare(
            engine, reference, checkpoint, _token_ids(request, checkpoint), layers=_layers(request, checkpoint), say=say
        )
    except SternaError as error:
        yield failed("layers", error)
        return
    quantised = (request.directory / "config.json").read_text().find("quantization_config") >= 0
    yield from numeric_checks(result, quantised=quantised)


def _reference(request: VerifyRequest, checkpoint: Checkpoint) -> LayerEngine:
    """`transformers` where it is installed, else our numpy oracle in float64."""
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if request.reference == "transformers" and not installed:
        raise UsageError(
            "the reference transformers is not installed", hint="pip install torch transformers, or --reference numpy"
        )
    if request.reference == "transformers" or (request.reference == "auto" and installed):
        path = request.directory / "config.json"
        return TransformersLayers(checkpoint, load_json(path.read_bytes(), where=str(path)))
    from sterna.locate import make_backend

    return OpSetLayers(make_backend("numpy")[0].ops, checkpoint)  # type: ignore[attr-defined]


def _layers(request: VerifyRequest, checkpoint: Checkpoint) -> list[Layer]:
    layers = all_layers(checkpoint)
    if request.layers is not None:
        for index in request.layers:
            if not 0 <= index < len(layers):
                raise UsageError(f"layer is {index}, allowed is 0 to {len(layers) - 1}")
        return [layers[index] for index in request.layers]
    if not request.quick:
        return layers
    first = {layer.kind: layer for layer in reversed(layers)}
    return sorted({*first.values(), layers[-1]}, key=layers.index)


def _token_ids(request: VerifyRequest, checkpoint: Checkpoint) -> npt.NDArray[np.int64]:
    """A text in the checkpoint's own tokens; it does not matter which, as long as it is one that the model could read."""
    from sterna.chat.tokenizer import Tokenizer

    ids = Tokenizer.from_directory(request.directory).encode(SAMPLE_TEXT)
    return np.resize(np.asarray(ids, np.int64), request.tokens)
