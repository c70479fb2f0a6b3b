"""``sterna logits`` writes golden logits, whole or in chunks, by every backend."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sterna.cli.main import main
from sterna.ops import tolerances
from support.golden import BACKENDS, GOLDEN, reference


@pytest.mark.parametrize("chunks", [None, "70,37", "150"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str, chunks: str | None) -> None:
    ids, out = tmp_path / "ids.json", tmp_path / "logits"
    ids.write_text(json.dumps(reference()["ids"][0].tolist()))
    args = [
        "logits",
        "--model",
        str(GOLDEN),
        "--token-ids",
        str(ids),
        "--backend",
        backend,
        "--out",
        str(out),
        "--json",
    ]
    assert main(args + (["--chunks", chunks] if chunks else [])) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["shape"] == [150, 512]
    assert sum(result["chunks"]) == 150
    logits = np.load(out)
    assert logits.dtype == np.float32
    assert np.abs(logits - reference()["full"][0]).max() <= tolerances.GOLDEN_LOGITS


@pytest.mark.parametrize(
    ("content", "extra", "message"),
    [
        ("[]", [], "holds no list of token ids"),
        ("{", [], "as JSON"),
        ("[1, 512]", [], "token 1 of .* is 512, allowed is an integer from 0 to 511"),
        ("[true]", [], "token 0 of .* is True"),
        ("[1, 2]", ["--chunks", "3"], "hold 3 tokens, allowed is up to the 2"),
    ],
)
def test_wrong_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, extra: list[str], message: str
) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text(content)
    args = ["logits", "--model", str(GOLDEN), "--token-ids", str(ids), "--out", str(tmp_path / "out.npy"), *extra]
    assert main(args) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_text_longer_than_the_context_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([1] * 4097))
    assert main(["logits", "--model", str(GOLDEN), "--token-ids", str(ids), "--out", str(tmp_path / "out.npy")]) == 1
    assert "4,097 tokens, the context is 4,096" in capsys.readouterr().err
