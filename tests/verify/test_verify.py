"""Checks that pass on what is right and fail, by name, on what is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sterna.backends.numpy import NumpyBackend
from sterna.checkpoint import Checkpoint, TensorView, write_safetensors
from sterna.cli.main import main
from sterna.config import preset
from sterna.hub import pull_directory
from sterna.locate import STERNULA_DIRECTORY
from sterna.verify import Check, VerifyRequest, verify
from sterna.verify.numeric import OpSetLayers, TransformersLayers, all_layers, compare, numeric_checks
from sterna.verify.tensors import published_counts
from sterna.verify.vectors import vector_checks
from support.chat import official_template
from support.golden import GOLDEN
from support.tiny_checkpoint import write_tiny_checkpoint

OFFICIAL_CONFIG = Path(__file__).parents[1] / "data" / "official"
TOKENS = np.arange(40) * 7 % 500


def quiet(text: str) -> None:
    pass


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny")


def checks_of(directory: Path, **options: object) -> dict[str, Check]:
    given = {"backend": "numpy", "reference": "numpy", "tokens": 8, "layers": (), **options}
    return {check.name: check for check in verify(VerifyRequest(directory, **given), say=quiet)}  # type: ignore[arg-type]


def rewrite(directory: Path, name: str, change) -> None:
    """Change one tensor of a single-file checkpoint."""
    tensors = {}
    for stored, view in Checkpoint(directory).files[0].items():
        array = view.array.copy()
        tensors[stored] = TensorView(stored, view.dtype, change(array) if stored == name else array)
    write_safetensors(directory / "model.safetensors", tensors)


def test_sternula_is_what_it_should_be(capsys) -> None:
    args = ["verify", str(STERNULA_DIRECTORY), "--json", "--quick", "--tokens", "20", "--backend", "numpy"]
    assert main(args) == 0
    out = capsys.readouterr()
    result = json.loads(out.out.splitlines()[-1])
    statuses = {check["name"]: check["status"] for check in result["checks"]}
    assert result["failed"] == 0 and statuses["layers"] == "PASS" and statuses["tokenizer"] == "PASS"
    assert "transformers" in next(c["detail"] for c in result["checks"] if c["name"] == "layers")
    assert "mtp.layers.0 (full_attention)" in out.err


def test_every_layer_against_transformers() -> None:
    checkpoint = Checkpoint(GOLDEN)
    reference = TransformersLayers(checkpoint, json.loads((GOLDEN / "config.json").read_text()))
    engine = OpSetLayers(NumpyBackend().ops, checkpoint)
    result = compare(engine, reference, checkpoint, TOKENS, layers=all_layers(checkpoint), say=quiet)
    assert [each.layer.prefix for each in result.layers][-1] == "model.language_model.layers.7"
    assert max(each.relative for each in result.layers) < 1e-4
    assert result.agreement == 1.0 and result.mean_kl is not None and abs(result.mean_kl) < 1e-6


@pytest.mark.parametrize(
    ("name", "change", "layer"),
    [
        ("layers.2.linear_attn.A_log", lambda a: a + np.float32(0.5), 2),
        ("layers.3.self_attn.q_norm.weight", lambda a: a + np.float32(1), 3),
        ("layers.5.mlp.experts.gate_up_proj", lambda a: np.roll(a, a.shape[1] // 2, axis=1), 5),
        ("layers.0.mlp.gate.weight", lambda a: a[::-1].copy(), 0),
    ],
)
def test_a_wrong_layer_is_named(tmp_path, name, change, layer) -> None:
    wrong = Path(shutil.copytree(GOLDEN, tmp_path / "wrong"))
    rewrite(wrong, f"model.language_model.{name}", change)
    checkpoint = Checkpoint(GOLDEN)
    engines = [OpSetLayers(NumpyBackend().ops, each) for each in (Checkpoint(wrong), checkpoint)]
    layers = all_layers(checkpoint)
    some = [layers[layer], layers[7 - layer]]
    result = compare(*engines, checkpoint, TOKENS[:12], layers=some, say=quiet)
    assert [each.relative > 2e-3 for each in result.layers] == [True, False]
    check = next(iter(numeric_checks(result, quantised=False)))
    assert check.status == "FAIL" and f"layers.{layer}" in check.detail


def test_layers_may_be_chosen(tiny) -> None:
    checks = checks_of(tiny, layers=(3,))
    assert checks["layers"].status == "PASS" and "1 layers" in checks["layers"].detail and "logits" not in checks
    assert checks_of(tiny, layers=(9,))["layers"].status == "FAIL"
    assert checks_of(tiny, layers=())["layers"].status == "SKIP"


def test_values_that_are_no_numbers(tiny) -> None:
    def spoil(array):
        array.reshape(-1)[5] = np.inf
        array.reshape(-1)[6] = np.nan
        return array

    name = "model.language_model.layers.1.mlp.experts.down_proj"
    rewrite(tiny, name, spoil)
    check = checks_of(tiny)["values"]
    assert check.status == "FAIL" and f"{name} holds 2 values" in check.detail


def test_a_changed_file_is_noticed(tiny, tmp_path) -> None:
    result = pull_directory(tiny, tmp_path / "models", into=tmp_path / "pulled", say=quiet)
    assert checks_of(result.directory)["record of the pull"].status == "PASS"
    weights = result.directory / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()  # it is linked to the source
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "has changed since" in checks_of(result.directory)["record of the pull"].detail
    assert checks_of(result.directory, quick=True)["record of the pull"].status == "PASS"
    (result.directory / "chat_template.jinja").unlink()
    assert "is missing" in checks_of(result.directory)["record of the pull"].detail


def test_what_has_the_official_configuration_must_be_official(tiny) -> None:
    for name in ("config.json", "generation_config.json"):
        shutil.copy(OFFICIAL_CONFIG / name, tiny / name)
    checks = checks_of(tiny)
    assert checks["published hashes"].status == "FAIL"
    assert "(and 26 more)" in checks["published hashes"].detail
    assert checks["checkpoint"].status == "FAIL"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("a.index.json", "b.index.json"), "there are 2 index files"),
        (("model.safetensors.index.json",), "lies beside an index"),
        (("x.gguf",), "in one directory"),
    ],
)
def test_directories_that_are_mixed(tiny, extra, words) -> None:
    for name in extra:
        (tiny / name).write_text("{}")
    check = checks_of(tiny)["directory"]
    assert check.status == "FAIL" and words in check.detail and check.hint


def test_a_head_that_was_lost_is_said(tmp_path) -> None:
    lost = Path(shutil.copytree(GOLDEN, tmp_path / "lost"))
    tensors = {n: v for n, v in Checkpoint(GOLDEN).files[0].items() if not n.startswith(("mtp.", "model.visual."))}
    write_safetensors(lost / "model.safetensors", tensors)
    shutil.copy(write_tiny_checkpoint(tmp_path / "tiny") / "tokenizer.json", lost)
    checks = checks_of(lost)
    assert checks["prediction head"].status == "SKIP" and "transformers loses it" in (
        checks["prediction head"].hint or ""
    )
    assert checks["vision tower"].status == "SKIP"


def test_the_published_counts() -> None:
    config = preset("qwen3.6-35b-a3b")
    assert dict(published_counts(config, fp8=False)) == {"text": 693, "mtp": 19, "vision": 333}
    assert dict(published_counts(config, fp8=True)) == {"text": 62_303, "mtp": 1_560, "vision": 333}


@pytest.mark.skipif(
    official_template() is None, reason="the official template is not in the repository and not beside it"
)
def test_the_official_template_renders_the_published_vectors(tiny) -> None:
    (tiny / "chat_template.jinja").write_text(str(official_template()))
    checks = {check.name: check for check in vector_checks(tiny, Checkpoint(tiny).config)}
    assert checks["chat template"].status == "PASS" and "all 5" in checks["chat template"].detail


def test_a_tokenizer_with_more_ids_than_rows(tiny) -> None:
    config = Checkpoint(tiny).config
    small = replace(config, text=replace(config.text, vocab_size=100))
    assert {check.name: check.status for check in vector_checks(tiny, small)}["tokenizer"] == "FAIL"


def test_wrong_usage(tmp_path, capsys) -> None:
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "allowed is one that holds a checkpoint" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 1
    assert "cannot read" in capsys.readouterr().out
