"""Numbers, one decoder layer at a time: the backend against an independent engine on the same inputs.

Only one layer is in memory at once, so the official checkpoint in BF16 needs less than 24 GB. Every layer gets the
reference's input, so that errors do not add up and a wrong layer is named; the backend's own output is carried along
beside it, so that the logits at the end are those of an uninterrupted pass.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sterna.backends.base import Batch
from sterna.checkpoint import Checkpoint
from sterna.checkpoint.manifest import layer_tensors
from sterna.models.qwen3_5_moe import Qwen35MoeModel
from sterna.models.weights import WeightLoader
from sterna.ops.base import OpSet
from sterna.verify.checks import FAIL, PASS, Check

Float32 = npt.NDArray[np.float32]
# Largest relative difference of what a layer adds: two float32 computations in different order, and the same with
# activations rounded to 8 bits for quantised weights.
FLOAT_TOLERANCE, QUANTISED_TOLERANCE = 2e-3, 6e-2
# Share of positions at which both engines like the same next token best.
AGREEMENT_FLOAT, AGREEMENT_QUANTISED = 0.98, 0.85
BLOCK_SIZE = 64
HEAD_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder layer by its place in the checkpoint; that of the prediction head is ``mtp.layers.0``."""

    prefix: str
    kind: str


def all_layers(checkpoint: Checkpoint) -> list[Layer]:
    """The layers of the trunk in order, then that of the prediction head if there is one."""
    kinds = checkpoint.config.text.layer_types
    trunk = [Layer(f"model.language_model.layers.{i}", kind) for i, kind in enumerate(kinds)]
    return trunk + ([Layer("mtp.layers.0", "full_attention")] if checkpoint.has_mtp else [])


class LayerEngine(Protocol):
    """Something that computes one decoder layer of the checkpoint: x float32 [T, D] -> float32 [T, D]."""

    name: str

    def layer(self, layer: Layer, xs: Sequence[Float32]) -> list[Float32]:
        """The layer's output for several inputs, each a sequence from position 0; the weights are dropped afterwards."""


class OpSetLayers(Qwen35MoeModel):
    """The layers of our model over one op set, loaded one at a time."""

    def __init__(self, ops: OpSet, checkpoint: Checkpoint) -> None:
        # No weights are loaded here: of the model only what works on one given layer is used.
        self.ops = ops
        self.name = ops.name
        self.config = checkpoint.config.text
        self._loader = WeightLoader(ops, checkpoint, self.config)

    def layer(self, layer: Layer, xs: Sequence[Float32]) -> list[Float32]:
        """See `LayerEngine.layer`."""
        weights = self._loader.layer(layer.prefix, layer.kind)
        outputs = []
        for x in xs:
            tokens = x.shape[0]
            cache = (
                self.ops.allocate_state(1, self.config)
                if layer.kind == "linear_attention"
                else self.ops.allocate_kv(-(-tokens // BLOCK_SIZE), BLOCK_SIZE, self.config)
            )
            out = self.decoder_layer(self.ops.tensor(x), weights, cache, self.context(_batch(tokens)))
            outputs.append(np.asarray(self.ops.to_numpy(out), np.float32))
        return outputs


class TransformersLayers:
    """The layers of `transformers`, in float32 on the CPU: a model of one layer of each kind, filled anew each time."""

    name = "transformers"

    def __init__(self, checkpoint: Checkpoint, config_json: dict[str, Any]) -> None:
        import torch
        import transformers

        self._torch, self._checkpoint = torch, checkpoint
        self.name = f"transformers {transformers.__version__}"
        self._text = dict(config_json.get("text_config") or config_json)
        self._models = {kind: self._model(kind) for kind in sorted(set(checkpoint.config.text.layer_types))}

    def _model(self, kind: str) -> Any:
        from transformers import AutoConfig, AutoModel

        text = {key: value for key, value in self._text.items() if key not in ("model_type", "quantization_config")}
        # Embedding and head are not used; they would be the largest tensors.
        text |= {
            "num_hidden_layers": 1,
            "layer_types": [kind],
            "vocab_size": 8,
            "pad_token_id": None,
            "dtype": "float32",
        }
        text |= {"bos_token_id": 0, "eos_token_id": 0}
        text.pop("full_attention_interval", None)
        model_type = self._text["model_type"]
        config = AutoConfig.for_model(model_type if model_type.endswith("_text") else f"{model_type}_text", **text)
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"
        with self._torch.device("meta"):
            model = AutoModel.from_config(config)
        model.rotary_emb = type(model.rotary_emb)(config)
        model.norm = self._torch.nn.Identity()
        return model.eval()

    def layer(self, layer: Layer, xs: Sequence[Float32]) -> list[Float32]:
        """See `LayerEngine.layer`."""
        torch, prefix = self._torch, layer.prefix
        names = layer_tensors(prefix, layer.kind, self._checkpoint.config.text)
        state = {
            "layers.0" + name.removeprefix(prefix): torch.from_numpy(self._checkpoint.tensor(name).to_float32())
            for name in names
        }
        model = self._models[layer.kind]
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
        assert not unexpected and set(missing) <= {"embed_tokens.weight"}, (missing, unexpected)
        del state
        outputs = []
        with torch.no_grad():
            for x in xs:
                hidden = model(inputs_embeds=torch.from_numpy(x)[None], use_cache=False).last_hidden_state
                outputs.append(hidden[0].numpy().copy())
        model.layers[0].to("meta")
        return outputs


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How far a layer is from the reference, relative to what the layer adds to its input.

    ``relative`` leaves the worst token out, which is ``worst_token``: a near-tie of the router may send one elsewhere.
    """

    layer: Layer
    relative: float
    worst_token: float


@dataclass(frozen=True, slots=True)
class NumericResult:
    """All layers that were compared, and the logits at the end where all were."""

    engine: str
    reference: str
    layers: tuple[LayerDifference, ...]
    agreement: float | None
    mean_kl: float | None
    peak_bytes: int


def compare(
    engine: LayerEngine,
    reference: LayerEngine,
    checkpoint: Checkpoint,
    token_ids: npt.NDArray[np.int64],
    *,
    layers: Sequence[Layer],
    say: Callable[[str], None],
) -> NumericResult:
    """Run both engines over the given layers. Where some of the trunk are left out, each starts from the embedding."""
    trunk = all_layers(checkpoint)[: checkpoint.config.text.num_hidden_layers]
    whole = list(layers[: len(trunk)]) == trunk
    start = embedding_rows(checkpoint, token_ids)
    expected, own = start, start
    found = []
    for number, layer in enumerate(layers):
        say(f"layer {number + 1} of {len(layers)}: {layer.prefix} ({layer.kind})")
        chained = whole and number < len(trunk)
        x = expected if chained else start
        (y,) = reference.layer(layer, [x])
        gc.collect()
        outputs = engine.layer(layer, [x, own] if chained else [x])
        gc.collect()
        found.append(_difference(layer, x, y, outputs[0]))
        if chained:
            expected, own = y, outputs[1]
    agreement = mean_kl = None
    if whole:
        say("output head")
        agreement, mean_kl = _compare_logits(checkpoint, expected, own)
    return NumericResult(engine.name, reference.name, tuple(found), agreement, mean_kl, _peak_bytes())


def numeric_checks(result: NumericResult, *, quantised: bool) -> Iterator[Check]:
    """The verdict, with the numbers."""
    tolerance = QUANTISED_TOLERANCE if quantised else FLOAT_TOLERANCE
    worst = max(result.layers, key=lambda each: math.inf if math.isnan(each.relative) else each.relative)
    good = worst.relative <= tolerance
    yield Check(
        "layers", PASS if good else FAIL,
        f"{len(result.layers)} layers by {result.engine} against {result.reference}: largest difference {worst.relative:.1e} "
        f"({worst.layer.prefix}, {worst.layer.kind}), allowed is {tolerance:.0e}; peak memory {result.peak_bytes / 1e9:.1f} GB",
        None if good else "this is a fault of sterna or of its build: try --backend numpy and report what differs",
    )  # fmt: skip
    if result.agreement is not None and result.mean_kl is not None:
        allowed = AGREEMENT_QUANTISED if quantised else AGREEMENT_FLOAT
        yield Check(
            "logits", PASS if result.agreement >= allowed else FAIL,
            f"the likeliest next token agrees at {result.agreement:.1%} of the positions, allowed is from {allowed:.0%}; "
            f"mean KL divergence {result.mean_kl:.1e}",
        )  # fmt: skip


def embedding_rows(checkpoint: Checkpoint, token_ids: npt.NDArray[np.int64]) -> Float32:
    """float32 [T, D]: rows of the embedding, without decoding the whole table."""
    return _rows(checkpoint.tensor("model.language_model.embed_tokens.weight"), token_ids)


def layer_bytes(checkpoint: Checkpoint) -> int:
    """A bound on the memory that one layer takes: the reference's float32, one copy on its way, and our packed one."""
    text = checkpoint.config.text
    largest = max(
        sum(math.prod(shape) for shape in layer_tensors("", kind, text).values()) for kind in set(text.layer_types)
    )
    return 3 * 4 * largest


def _rows(view: Any, rows: Any) -> Float32:
    """float32 rows of a matrix: decoded alone where the storage allows it."""
    if hasattr(view, "rows"):  # a quantised tensor
        return np.stack([view.rows(int(row), int(row) + 1)[0] for row in rows])
    return type(view)(view.name, view.dtype, view.array[rows]).to_float32() if _plain(view) else view.to_float32()[rows]


def _plain(view: Any) -> bool:
    from sterna.checkpoint import TensorView

    return isinstance(view, TensorView)


def _batch(tokens: int) -> Batch:
    index = np.arange(tokens, dtype=np.int32)
    return Batch(
        token_ids=index, positions=np.tile(index, (3, 1)), cu_seqlens=np.array([0, tokens], np.int32),
        context_lens=np.zeros(1, np.int32), block_tables=np.arange(-(-tokens // BLOCK_SIZE), dtype=np.int32)[None],
        slot_mapping=index, state_slots=np.zeros(1, np.int32), logits_indices=index,
    )  # fmt: skip


def _difference(layer: Layer, x: Float32, expected: Float32, found: Float32) -> LayerDifference:
    error, update = (found - expected).astype(np.float64), (expected - x).astype(np.float64)
    per_token = np.linalg.norm(error, axis=1) / np.maximum(np.linalg.norm(update, axis=1), 1e-30)
    rest = per_token.argsort()[:-1] if len(per_token) > 1 else np.arange(1)
    relative = np.linalg.norm(error[rest]) / np.linalg.norm(update[rest])
    return LayerDifference(layer, float(relative), float(per_token.max()))


def _compare_logits(checkpoint: Checkpoint, expected: Float32, found: Float32) -> tuple[float, float]:
    """Share of positions with the same likeliest token, and mean KL divergence; the head is applied in pieces."""
    a, b = (_logits(checkpoint, x) for x in (expected, found))
    agreement = float((a.argmax(1) == b.argmax(1)).mean())
    log_a, log_b = (v - np.logaddexp.reduce(v, axis=1, keepdims=True) for v in (a, b))
    return agreement, float((np.exp(log_a) * (log_a - log_b)).sum(1).mean())


def _logits(checkpoint: Checkpoint, x: Float32) -> npt.NDArray[np.float64]:
    from sterna.ops.rms_norm import rms_norm

    text = checkpoint.config.text
    weight = checkpoint.tensor("model.language_model.norm.weight").to_float32()
    hidden = rms_norm(x, weight, text.rms_norm_eps)
    head = checkpoint.tensor(
        "model.language_model.embed_tokens.weight" if text.tie_word_embeddings else "lm_head.weight"
    )
    pieces = (range(i, min(i + HEAD_ROWS, text.vocab_size)) for i in range(0, text.vocab_size, HEAD_ROWS))
    return np.concatenate([hidden @ _rows(head, np.asarray(piece)).T for piece in pieces], axis=1).astype(np.float64)


def _peak_bytes() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
