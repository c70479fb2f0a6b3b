"""Every kind of member of the family: loads as `transformers` saved it, and gives its logits on every backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sterna.accounting import count_parameters, weight_bytes
from sterna.backends.common import ModelBackend
from sterna.checkpoint import Checkpoint
from sterna.config import ModelConfig
from sterna.errors import ConfigError
from sterna.ops import tolerances
from support.family import MEMBERS, Member, save_member
from support.golden import BACKENDS, Piece, Stream, logits_of, open_backend


@pytest.fixture(scope="module", params=MEMBERS)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    return save_member(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, member: Member) -> ModelBackend:
    return open_backend(BACKENDS[request.param], Checkpoint(member.directory))


def test_prefill_pieces_and_cached_steps(backend: ModelBackend, member: Member) -> None:
    whole = logits_of(backend, Piece(Stream(), member.ids))
    assert np.abs(whole - member.full).max() <= tolerances.GOLDEN_LOGITS
    stream = Stream(blocks=[9, 3, 17, 0, 30], slot=2)
    pieces = np.split(member.ids, [37, member.prompt, *range(member.prompt + 1, len(member.ids))])
    rows = np.concatenate([logits_of(backend, Piece(stream, piece)) for piece in pieces])
    assert np.abs(rows - member.cached).max() <= tolerances.GOLDEN_LOGITS
    if backend.name == "native":
        assert (rows == whole).all()
    backend.close()


def test_parameters_are_those_that_were_saved(member: Member) -> None:
    checkpoint = Checkpoint(member.directory)
    stored = sum(view.array.size for file in checkpoint.files for view in file.values())
    counts = count_parameters(checkpoint.config)
    assert counts.total == stored
    assert weight_bytes(stored, "bf16") == 2 * stored
    dense = checkpoint.config.text.is_dense
    # a tied head is computed with, but not stored; an embedding row counts as nothing
    stored_text = counts.text - counts.embedding + (counts.lm_head if checkpoint.config.text.tie_word_embeddings else 0)
    assert counts.active == stored_text if dense else counts.active < stored_text


def test_the_mlp_matters(member: Member, tmp_path: Path) -> None:
    """The same weights without the gate: the comparison above would notice."""
    if not Checkpoint(member.directory).config.text.is_dense:
        pytest.skip("only dense members have this MLP; the mixture has its own negative controls")
    backend = open_backend(BACKENDS["numpy"], Checkpoint(member.directory))
    for layer in backend.model.layers:
        gate, up, down = layer.mlp.packed  # type: ignore[union-attr]
        layer.mlp.packed = type(layer.mlp.packed)(up, gate, down)  # type: ignore[union-attr]
    wrong = logits_of(backend, Piece(Stream(), member.ids))
    assert np.abs(wrong - member.full).max() > tolerances.NEGATIVE_CONTROL


def test_a_dense_configuration_is_read_strictly(member: Member) -> None:
    import json

    from sterna.config import parse_model_config

    raw = json.loads((member.directory / "config.json").read_text())
    text = raw.get("text_config", raw)
    config = parse_model_config(raw)
    assert isinstance(config, ModelConfig)
    size = "intermediate_size" if config.text.is_dense else "moe_intermediate_size"
    for bad in (0, "x", None):
        text[size] = bad
        with pytest.raises(ConfigError, match=size):
            parse_model_config(raw)
    other = "qwen3_5_moe_text" if config.text.is_dense else "qwen3_5_text"
    text[size] = 64
    if text is not raw:
        text["model_type"] = other
        with pytest.raises(ConfigError, match="model_type"):
            parse_model_config(raw)
