"""Importance weights against the inputs that the reference ops really see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sterna.backends.numpy import recording
from sterna.backends.numpy.recording import input_importance
from sterna.checkpoint import TensorView, expected_tensors
from sterna.checkpoint.random import RandomCheckpoint
from sterna.config import ModelConfig
from support.llama_cpp import run_numpy
from support.random_checkpoint import SMALL

IDS = np.random.default_rng(5).integers(0, SMALL.vocab_size, 30).tolist()


@pytest.fixture(scope="module")
def checkpoint() -> RandomCheckpoint:
    return RandomCheckpoint(ModelConfig(SMALL, None, (1,)))


@pytest.fixture(scope="module")
def importance(checkpoint: RandomCheckpoint) -> dict[str, np.ndarray]:
    return input_importance(checkpoint, IDS)  # type: ignore[arg-type]


def test_every_matrix_that_multiplies_is_there(checkpoint: RandomCheckpoint, importance: dict[str, np.ndarray]) -> None:
    shapes = {name: spec.shape for name, spec in expected_tensors(checkpoint.config).items() if len(spec.shape) > 1}
    wanted = {name for name in shapes if not name.endswith(("embed_tokens.weight", "conv1d.weight"))}
    assert set(importance) == wanted
    for name, weight in importance.items():
        shape = shapes[name]
        assert weight.shape == ((shape[0], 1, shape[2]) if len(shape) == 3 else shape[-1:]), name
        assert weight.dtype == np.float32 and weight.min() >= recording.LEAST_SHARE
        np.testing.assert_allclose(weight.mean(axis=-1), 1, rtol=0.02)


def test_the_head_sees_the_final_hidden_states(checkpoint: RandomCheckpoint) -> None:
    """Without the MTP head, which uses the same matrix a second time."""
    alone: Any = RandomCheckpoint(ModelConfig(replace(SMALL, mtp_num_hidden_layers=0), None, (1,)))
    mean = (run_numpy(checkpoint, IDS)["hidden"].astype(np.float64) ** 2).mean(axis=0)
    np.testing.assert_allclose(input_importance(alone, IDS)["lm_head.weight"], mean / mean.mean(), rtol=1e-5)


def test_a_column_that_never_sees_a_value_keeps_a_little_weight(checkpoint: RandomCheckpoint) -> None:
    class Silent(RandomCheckpoint):
        def tensor(self, name: str) -> TensorView:
            view = super().tensor(name)
            if name.endswith("layers.0.input_layernorm.weight"):
                values = view.to_float32()
                values[5] = -1  # stored as w, used as 1 + w
                return TensorView(name, "F32", values)
            return view

    name = "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"
    silent: Any = Silent(checkpoint.config)
    assert input_importance(silent, IDS)[name][5] == np.float32(recording.LEAST_SHARE)


def test_recording_changes_no_result(checkpoint: RandomCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, np.ndarray] = {}

    class Watching(recording._RecordingOps):
        def take_rows(self, x: np.ndarray, rows_: np.ndarray) -> np.ndarray:
            seen.setdefault("hidden", x)
            return super().take_rows(x, rows_)

    monkeypatch.setattr(recording, "_RecordingOps", Watching)
    input_importance(checkpoint, IDS)  # type: ignore[arg-type]
    np.testing.assert_array_equal(seen["hidden"], run_numpy(checkpoint, IDS)["hidden"])
