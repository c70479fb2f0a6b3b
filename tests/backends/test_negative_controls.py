"""Each known way to get the architecture wrong, applied one at a time, must make the golden test fail (spec §10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sterna.backends.numpy import NumpyBackend, opset
from sterna.ops import gated_delta_net, gated_delta_rule, gqa_attention, rope, sparse_moe, tolerances
from sterna.ops.activations import sigmoid, silu
from sterna.ops.rms_norm import gated_rms_norm, rms_norm
from support.golden import Piece, Stream, image_prompt, logits_of, open_backend, reference

Array = np.ndarray
Patch = Callable[[pytest.MonkeyPatch], None]


def plain_weight_norm(patch: pytest.MonkeyPatch) -> None:
    for module in (opset, gqa_attention):
        patch.setattr(module, "rms_norm", lambda x, weight, eps: rms_norm(x, weight - 1, eps))


def one_added_in_gated_norm(patch: pytest.MonkeyPatch) -> None:
    replace_gated_norm(patch, lambda x, weight, gate, eps: gated_rms_norm(x, weight + 1, gate, eps))


def gate_before_norm(patch: pytest.MonkeyPatch) -> None:
    replace_gated_norm(patch, lambda x, weight, gate, eps: rms_norm(x * silu(gate), weight - 1, eps))


def sigmoid_of_z(patch: pytest.MonkeyPatch) -> None:
    replace_gated_norm(patch, lambda x, weight, gate, eps: rms_norm(x, weight - 1, eps) * sigmoid(gate))


def replace_gated_norm(patch: pytest.MonkeyPatch, norm: Callable[..., Array]) -> None:
    patch.setattr(gated_delta_net, "gated_rms_norm", norm)


def no_l2_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gated_delta_net, "l2_norm", lambda x: x)


def tiled_heads(patch: pytest.MonkeyPatch) -> None:
    def tile(x: Array, v: Array) -> Array:
        return np.tile(x, (1, v.shape[1] // x.shape[1], 1))

    patch.setattr(gated_delta_rule, "_expand_heads", tile)


def all_queries_then_all_gates(patch: pytest.MonkeyPatch) -> None:
    def split(projected: Array, config: Any) -> tuple[Array, Array]:
        query, gate = np.split(projected, 2, axis=1)
        return query.reshape(len(query), config.num_attention_heads, config.head_dim), gate

    patch.setattr(gqa_attention, "split_query_gate", split)


def silu_output_gate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gqa_attention, "sigmoid", silu)


def adjacent_pair_rope(patch: pytest.MonkeyPatch) -> None:
    def rotate(x: Array, cos: Array, sin: Array) -> Array:
        result, end = x.copy(), 2 * cos.shape[-1]
        even, odd = x[..., 0:end:2], x[..., 1:end:2]
        result[..., 0:end:2] = even * cos[:, None] - odd * sin[:, None]
        result[..., 1:end:2] = odd * cos[:, None] + even * sin[:, None]
        return result

    patch.setattr(gqa_attention, "apply_rope", rotate)


def delta_before_decay(patch: pytest.MonkeyPatch) -> None:
    replace_recurrence(patch, decay_first=False, write_first=True)


def read_before_write(patch: pytest.MonkeyPatch) -> None:
    replace_recurrence(patch, decay_first=True, write_first=False)


def replace_recurrence(patch: pytest.MonkeyPatch, *, decay_first: bool, write_first: bool) -> None:
    def rule(q: Array, k: Array, v: Array, *, g: Array, beta: Array, state: Array) -> tuple[Array, Array]:
        q, k = (np.repeat(x, v.shape[1] // x.shape[1], axis=1) for x in (q, k))
        out = np.empty_like(v)
        for t in range(len(v)):
            decayed = np.exp(g[t])[:, None, None] * state
            predicted = ((decayed if decay_first else state) @ k[t, :, :, None])[..., 0]
            written = decayed + (beta[t][:, None] * (v[t] - predicted))[:, :, None] * k[t, :, None]
            out[t] = ((written if write_first else decayed) @ q[t, :, :, None])[..., 0]
            state = written
        return out, state

    patch.setattr(gated_delta_net, "gated_delta_rule", rule)


def no_renormalisation(patch: pytest.MonkeyPatch) -> None:
    def route(logits: Array, top_k: int) -> tuple[Array, Array]:
        chosen, _ = sparse_moe_route(logits, top_k)
        return chosen, np.take_along_axis(sparse_moe.softmax(logits), chosen, axis=-1)

    sparse_moe_route = sparse_moe.route
    patch.setattr(sparse_moe, "route", route)


def up_before_gate(patch: pytest.MonkeyPatch) -> None:
    pack = opset.NumpyOps.pack_experts

    def swapped(self: opset.NumpyOps, gate_up_proj: Array, down_proj: Array) -> sparse_moe.Experts:
        return pack(self, np.concatenate(np.split(gate_up_proj, 2, axis=1)[::-1], axis=1), down_proj)

    patch.setattr(opset.NumpyOps, "pack_experts", swapped)


def reversed_taps(patch: pytest.MonkeyPatch) -> None:
    conv = gated_delta_net.causal_conv1d
    patch.setattr(gated_delta_net, "causal_conv1d", lambda x, weight, state: conv(x, weight[:, ::-1], state))


def contiguous_mrope_sections(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rope, "frequency_axes", lambda section: np.repeat(np.arange(3), section))


TEXT_CONTROLS: tuple[Patch, ...] = (
    plain_weight_norm,
    one_added_in_gated_norm,
    gate_before_norm,
    sigmoid_of_z,
    no_l2_norm,
    tiled_heads,
    all_queries_then_all_gates,
    silu_output_gate,
    adjacent_pair_rope,
    delta_before_decay,
    read_before_write,
    no_renormalisation,
    up_before_gate,
    reversed_taps,
)


def text_difference(tokens: int = 150) -> float:
    logits = logits_of(open_backend(NumpyBackend), Piece(Stream(), reference()["ids"][0][:tokens]))
    return float(np.abs(logits - reference()["full"][0][:tokens]).max())


def image_difference() -> float:
    return float(
        np.abs(logits_of(open_backend(NumpyBackend), image_prompt(Stream())) - reference()["img_logits"][0]).max()
    )


@pytest.mark.parametrize("control", TEXT_CONTROLS, ids=lambda control: control.__name__)
def test_a_deviation_is_detected(control: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    control(monkeypatch)
    assert text_difference() > tolerances.NEGATIVE_CONTROL


def test_the_written_out_recurrence_of_the_controls_is_right_without_a_deviation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_recurrence(monkeypatch, decay_first=True, write_first=True)
    assert text_difference() <= tolerances.GOLDEN_LOGITS


def test_contiguous_mrope_sections_show_on_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    contiguous_mrope_sections(monkeypatch)
    assert image_difference() > tolerances.NEGATIVE_CONTROL
    assert text_difference() <= tolerances.GOLDEN_LOGITS
