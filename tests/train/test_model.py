"""The training model against `transformers` on an exported checkpoint, and against itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

from sterna.errors import CheckpointError, ConfigError
from sterna.train import export
from sterna.train import model as model_module
from sterna.train.delta_rule import recurrent_gated_delta_rule
from sterna.train.model import TrainingModel, initialise
from sterna.train.shape import ModelShape

LOGIT_ATOL = 1e-4
TINY = ModelShape(
    vocab_size=320, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, head_dim=32, mrope_section=(3, 3, 2),
    linear_key_head_dim=16, linear_value_head_dim=32, num_experts=4, moe_intermediate_size=32,
    shared_expert_intermediate_size=48,
)  # fmt: skip


def _random_model(shape: ModelShape) -> TrainingModel:
    """Initialised, then every parameter disturbed, so that no norm or gate is at its neutral value."""
    model = TrainingModel(shape)
    initialise(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, tensor in sorted(model.named_parameters()):
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
    return model


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    """The least that an export needs of a tokenizer."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    added = [{"id": 300 + index, "content": name} for index, name in enumerate(export.SPECIAL_TOKENS)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_exported_weights_give_the_same_logits_in_transformers(tmp_path: Path, tokenizer_dir: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")
    model = _random_model(TINY)
    out = tmp_path / "checkpoint"
    export.export_checkpoint(model, tokenizer_dir=tokenizer_dir, out=out)
    export.load_exported(model, export.rounded_to_bfloat16(model))
    reference, report = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert all(name.startswith("mtp.") for name in report["unexpected_keys"]), report
    token_ids = torch.randint(0, TINY.vocab_size, (2, 150), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = reference(token_ids).logits
        found = model.logits(token_ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=LOGIT_ATOL)


def test_chunked_model_equals_recurrent_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _random_model(TINY)
    token_ids = torch.randint(0, TINY.vocab_size, (2, 97), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        chunked = model.logits(token_ids)
        monkeypatch.setattr(model_module, "chunk_gated_delta_rule", recurrent_gated_delta_rule)
        recurrent = model.logits(token_ids)
    torch.testing.assert_close(chunked, recurrent, rtol=0, atol=LOGIT_ATOL)


def test_padding_behind_a_sequence_changes_nothing() -> None:
    model = _random_model(TINY)
    token_ids = torch.randint(0, TINY.vocab_size, (1, 70), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        alone = model.logits(token_ids)
        padded = model.logits(torch.nn.functional.pad(token_ids, (0, 58)))[:, :70]
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


def test_mtp_slot_j_sees_tokens_up_to_j_plus_1_only() -> None:
    model = _random_model(TINY)
    token_ids = torch.randint(0, TINY.vocab_size, (1, 40), generator=torch.Generator().manual_seed(8))
    changed = token_ids.clone()
    changed[0, 20] = (changed[0, 20] + 1) % TINY.vocab_size

    def states(ids: torch.Tensor) -> torch.Tensor:
        valid = torch.ones(ids.shape)
        with torch.no_grad():
            return model.mtp_states(model.hidden_states(ids, valid)[0], ids, valid)[0][0]

    different = (states(token_ids) - states(changed)).abs().amax(-1) > 1e-4
    assert different.tolist() == [False] * 19 + [True] * 20


def test_sternula_fits_in_32_megabytes() -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in TrainingModel(ModelShape()).parameters())
    assert parameters == 12_601_904
    assert parameters * 2 <= export.MAX_BYTES


def test_too_large_an_export_is_refused_before_writing(tmp_path: Path, tokenizer_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="allowed are 1,000"):
        export.export_checkpoint(TrainingModel(TINY), tokenizer_dir=tokenizer_dir, out=tmp_path / "x", max_bytes=1000)
    assert not (tmp_path / "x").exists()


def test_rotary_sections_must_match_the_rotary_dimensions() -> None:
    with pytest.raises(ConfigError, match="adds up to 16, allowed is half of the 16"):
        dataclasses.replace(ModelShape(), partial_rotary_factor=0.25)
