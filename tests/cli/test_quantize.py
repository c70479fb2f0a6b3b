"""``sterna quantize`` on the built-in model: both kinds of output, the manifest, calibration, and refused arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sterna.chat.tokenizer import Tokenizer
from sterna.checkpoint import Checkpoint
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.packed_checkpoint import PackedCheckpoint
from sterna.cli.main import main
from sterna.locate import STERNULA_DIRECTORY

TEXT = "def add(a, b):\n    return a + b\n" * 8


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code = main(["quantize", "--model", str(STERNULA_DIRECTORY), *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out.splitlines()[-1])
    return result


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["quantize", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_packed_directory_is_a_whole_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    result = run(capsys, "--recipe", "q8", "--out", out)
    assert result["recipe"] == "q8" and result["tensors"] == 160 and 8 < result["bits_per_weight"] < 9
    assert 0 < result["error"] < 0.01
    read = PackedCheckpoint(out)
    assert read.config == Checkpoint(STERNULA_DIRECTORY).config
    assert read.damaged() == []
    assert Tokenizer.from_directory(out).encode(TEXT) == Tokenizer.from_directory(STERNULA_DIRECTORY).encode(TEXT)
    assert (out / "chat_template.jinja").read_bytes() == (STERNULA_DIRECTORY / "chat_template.jinja").read_bytes()


def test_gguf_holds_weights_and_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "model.gguf"
    result = run(capsys, "--gguf", "BF16", "--out", out)
    source, read = Checkpoint(STERNULA_DIRECTORY), GgufCheckpoint(out)
    assert result["gguf"] == "BF16" and result["error"] == 0
    for name in ("lm_head.weight", "model.language_model.layers.0.linear_attn.out_proj.weight", "mtp.fc.weight"):
        assert (read.tensor(name).to_float32() == source.tensor(name).to_float32()).all()
    assert read.config.eos_token_ids[0] == source.config.eos_token_ids[0]
    stored = read.tokenizer()
    assert stored is not None
    assert len(stored.tokens) == source.config.text.vocab_size == len(stored.token_types)
    assert stored.chat_template == (STERNULA_DIRECTORY / "chat_template.jinja").read_text()
    kinds = {token: kind for token, kind in zip(stored.tokens, stored.token_types, strict=True)}
    assert (kinds["<|im_end|>"], kinds["<think>"], kinds["def"]) == (3, 4, 1)
    manifest = json.loads(out.with_name("model.gguf.manifest.json").read_text())
    assert manifest["tensors"]["output.weight"]["format"] == "BF16"


def test_calibration_weighs_the_quantised_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    result = run(capsys, "--recipe", "q4", "--out", tmp_path / "p", "--calibration", text, "--calibration-tokens", 40)
    # All quantised matrices but the embedding, whose rows are looked up and not multiplied.
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())["tensors"]
    quantised = [name for name, entry in manifest.items() if entry["format"].startswith("q")]
    unweighted = [name for name in quantised if not manifest[name]["weighted"]]
    assert unweighted == ["model.language_model.embed_tokens.weight"]
    assert result["weighted_tensors"] == len(quantised) - 1


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", STERNULA_DIRECTORY]
    assert "is the checkpoint" in refused(capsys, *model, "--out", STERNULA_DIRECTORY)
    assert "ends in .gguf" in refused(capsys, *model, "--gguf", "Q8_0", "--out", tmp_path / "x.bin")
    file = tmp_path / "file"
    file.write_text("")
    assert "a file; allowed is a directory" in refused(capsys, *model, "--out", file)
    text = ["--calibration", tmp_path / "none.txt"]
    assert "cannot read" in refused(capsys, *model, "--out", tmp_path / "o", *text)
    (tmp_path / "one.txt").write_text("a")
    text = ["--calibration", tmp_path / "one.txt"]
    assert "holds 1 tokens, allowed is 2 or more" in refused(capsys, *model, "--out", tmp_path / "o", *text)
