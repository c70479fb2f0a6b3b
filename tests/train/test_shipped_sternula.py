"""The checkpoint in the package: small enough, complete, and read alike by `transformers` and by this package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sterna
from sterna.backends.numpy import NumpyBackend
from sterna.chat import ChatFormat
from sterna.checkpoint import Checkpoint
from sterna.cli.logits import compute_logits
from sterna.config import read_model_config
from sterna.ops import tolerances

STERNULA = Path(sterna.__file__).parent / "data" / "sternula"


def test_files_are_within_the_announced_size() -> None:
    assert sum(path.stat().st_size for path in STERNULA.iterdir()) <= 32_000_000
    checkpoint = Checkpoint(STERNULA, read_model_config(STERNULA))
    assert list(checkpoint.names("mtp"))


def test_same_logits_as_transformers() -> None:
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")
    text = "def add(first, second):\n    return first - second\n\n\nassert add(2, 3) == 5\n" * 3
    token_ids = ChatFormat.load(STERNULA).tokenizer.encode(text)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        STERNULA, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = model(torch.tensor([token_ids])).logits[0].numpy()
    config = read_model_config(STERNULA)
    backend = NumpyBackend()
    backend.load(Checkpoint(STERNULA, config), config)
    found = compute_logits(backend, token_ids, [len(token_ids)])
    assert expected.std() > 1.0
    assert np.abs(found - expected).max() <= tolerances.GOLDEN_LOGITS * max(1.0, float(np.abs(expected).max()))
