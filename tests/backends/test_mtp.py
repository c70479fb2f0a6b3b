"""The multi-token prediction head against a straight-line computation of its own (spec §3.4): transformers has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sterna.backends.base import DraftBatch
from sterna.backends.common import ModelBackend
from sterna.checkpoint import Checkpoint, SafetensorsFile, TensorView, write_safetensors
from sterna.checkpoint.manifest import mtp_tensors
from sterna.config import TextConfig
from sterna.errors import BackendError
from sterna.ops import tolerances
from support.golden import BACKENDS, GOLDEN, Piece, Stream, batch_of, open_backend, reference

Weights = dict[str, np.ndarray]
SEED = 11


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The golden checkpoint with random tensors for the head that it lacks."""
    directory: Path = tmp_path_factory.mktemp("mtp")
    rng = np.random.default_rng(SEED)
    tensors = dict(SafetensorsFile(GOLDEN / "model.safetensors"))
    for name, shape in mtp_tensors(Checkpoint(GOLDEN).config.text).items():
        scale = 0.2 if len(shape) == 1 else shape[-1] ** -0.5
        tensors[name] = TensorView(name, "F32", (scale * rng.standard_normal(shape)).astype(np.float32))
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    return Checkpoint(directory)


@pytest.fixture(scope="module", params=BACKENDS)
def mtp_backend(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[ModelBackend]:
    opened = open_backend(BACKENDS[request.param], checkpoint)
    yield opened
    opened.close()


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + weight)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def straight_line_mtp(w: Weights, tokens: np.ndarray, hidden: np.ndarray, config: TextConfig) -> np.ndarray:
    """Normed hidden states of the head for a whole sequence, in float64, one row and one expert at a time."""
    embedded = norm(w["embed"][tokens], w["mtp.pre_fc_norm_embedding.weight"])
    context = norm(hidden, w["mtp.pre_fc_norm_hidden.weight"])
    x = np.concatenate([embedded, context], axis=1) @ w["mtp.fc.weight"].T
    p = "mtp.layers.0."
    x = x + straight_line_attention(w, p + "self_attn.", norm(x, w[p + "input_layernorm.weight"]), config)
    u = norm(x, w[p + "post_attention_layernorm.weight"])
    x = x + np.stack([straight_line_moe(w, p + "mlp.", row, config) for row in u])
    return norm(x, w["mtp.norm.weight"])


def straight_line_attention(w: Weights, p: str, u: np.ndarray, config: TextConfig) -> np.ndarray:
    heads, dim, half = config.num_attention_heads, config.head_dim, config.rotary_dim // 2
    angle = np.arange(len(u))[:, None] * 1e7 ** (-np.arange(half) / half)

    def rotate(x: np.ndarray) -> np.ndarray:
        pairs = (x[:, :half] + 1j * x[:, half : 2 * half]) * np.exp(1j * angle)
        return np.concatenate([pairs.real, pairs.imag, x[:, 2 * half :]], axis=1)

    outputs = []
    for head in range(heads):
        kv = head // (heads // config.num_key_value_heads)
        start = head * 2 * dim
        q = norm(u @ w[p + "q_proj.weight"][start : start + dim].T, w[p + "q_norm.weight"])
        gate = u @ w[p + "q_proj.weight"][start + dim : start + 2 * dim].T
        k = norm(u @ w[p + "k_proj.weight"][kv * dim : (kv + 1) * dim].T, w[p + "k_norm.weight"])
        v = u @ w[p + "v_proj.weight"][kv * dim : (kv + 1) * dim].T
        scores = np.exp(np.tril(rotate(q) @ rotate(k).T / np.sqrt(dim)) + np.triu(np.full((len(u),) * 2, -np.inf), 1))
        outputs.append(scores / scores.sum(1, keepdims=True) @ v * logistic(gate))
    return np.concatenate(outputs, axis=1) @ w[p + "o_proj.weight"].T


def straight_line_moe(w: Weights, p: str, u: np.ndarray, config: TextConfig) -> np.ndarray:
    scores = w[p + "gate.weight"] @ u
    chosen = np.argsort(-scores)[: config.num_experts_per_tok]
    shares = np.exp(scores[chosen]) / np.exp(scores[chosen]).sum()
    width = config.moe_intermediate_size
    total = np.zeros_like(u)
    for expert, share in zip(chosen, shares, strict=True):
        gate_up = w[p + "experts.gate_up_proj"][expert]
        gate, up = gate_up[:width] @ u, gate_up[width:] @ u
        total += share * (w[p + "experts.down_proj"][expert] @ (gate * logistic(gate) * up))
    gate, up = w[p + "shared_expert.gate_proj.weight"] @ u, w[p + "shared_expert.up_proj.weight"] @ u
    shared = w[p + "shared_expert.down_proj.weight"] @ (gate * logistic(gate) * up)
    return total + logistic(w[p + "shared_expert_gate.weight"] @ u) * shared


def float64_weights(checkpoint: Checkpoint) -> Weights:
    weights = {name: checkpoint.array(name).astype(np.float64) for name in checkpoint.names("mtp")}
    weights["embed"] = checkpoint.array("model.language_model.embed_tokens.weight").astype(np.float64)
    weights["lm_head"] = checkpoint.array("lm_head.weight").astype(np.float64)
    return weights


def test_drafts_of_a_prompt_in_pieces_and_a_deeper_draft(mtp_backend: ModelBackend, checkpoint: Checkpoint) -> None:
    ids, config = reference()["ids"][0][:61], checkpoint.config.text
    trunk = mtp_backend.forward(batch_of(Piece(Stream(), ids[:60])))
    hidden = mtp_backend.ops.to_numpy(trunk.hidden).astype(np.float64)
    weights = float64_weights(checkpoint)
    expected = straight_line_mtp(weights, ids[1:61], hidden, config)

    stream, logits = Stream(blocks=[7, 3, 9, 1, 5, 2]), []
    for first, last in ((0, 33), (33, 34), (34, 60)):
        piece = batch_of(Piece(stream, ids[first + 1 : last + 1]))
        draft = mtp_backend.draft(DraftBatch(piece, trunk.hidden, np.arange(first, last, dtype=np.int32)))
        logits.append(draft.to_numpy())
    assert np.abs(np.concatenate(logits) - expected @ weights["lm_head"].T).max() <= tolerances.GOLDEN_LOGITS

    token = int(np.argmax(logits[-1][-1]))
    deeper = DraftBatch(batch_of(Piece(stream, [token])), draft.hidden, np.array([25], np.int32))
    longer = straight_line_mtp(weights, [*ids[1:61], token], np.concatenate([hidden, expected[-1:]]), config)
    got = mtp_backend.draft(deeper).to_numpy()
    assert np.abs(got - longer[-1:] @ weights["lm_head"].T).max() <= tolerances.GOLDEN_LOGITS


def test_the_trunk_is_the_same_with_the_head_present(mtp_backend: ModelBackend) -> None:
    ids, full = reference()["ids"][0], reference()["full"][0]
    logits = mtp_backend.forward(batch_of(Piece(Stream(), ids))).to_numpy()
    assert np.abs(logits - full).max() <= tolerances.GOLDEN_LOGITS


def test_exported_blocks_hold_the_keys_of_the_head(mtp_backend: ModelBackend, backend: ModelBackend) -> None:
    assert mtp_backend.export_blocks([0]).shape[1] * 2 == backend.export_blocks([0]).shape[1] * 3


def test_a_checkpoint_without_the_head_cannot_draft(backend: ModelBackend) -> None:
    result = backend.forward(batch_of(Piece(Stream(), [1, 2])))
    draft = DraftBatch(batch_of(Piece(Stream(), [2])), result.hidden, np.array([0], np.int32))
    with pytest.raises(BackendError, match="no multi-token prediction head") as error:
        backend.draft(draft)
    assert error.value.hint
