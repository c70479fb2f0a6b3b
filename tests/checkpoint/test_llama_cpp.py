"""The same GGUF file in llama.cpp (golden data of `scripts/check-llama-cpp --golden`) and here: text model and MTP head."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sterna.backends.common import ModelBackend
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from support.golden import BACKENDS
from support.llama_cpp import GOLDEN, GOLDEN_IDS, run_numpy, write_golden_file

# Two engines add the same float32 numbers in different orders; the logits have a standard deviation of about 1.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama_cpp") / "golden.gguf"
    write_golden_file(path)
    return path


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as stored:
        return dict(stored)


def test_the_writer_still_writes_the_bytes_that_llama_cpp_ran(model: Path, golden: dict[str, np.ndarray]) -> None:
    assert hashlib.sha256(model.read_bytes()).hexdigest() == str(golden["sha256"])


@pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS)
def test_logits_hidden_states_drafts_and_greedy_text(
    make: Callable[[], ModelBackend], model: Path, golden: dict[str, np.ndarray]
) -> None:
    """The MTP head has no other witness: the order of the concatenation and which token meets which hidden row."""
    ours = run_numpy(GgufCheckpoint(model), GOLDEN_IDS, make())
    for name in ("hidden", "logits", "mtp_logits"):
        np.testing.assert_allclose(ours[name], golden[name], atol=TOLERANCE, rtol=0, err_msg=name)
    assert np.array_equal(ours["greedy"], golden["greedy"])


def test_the_mtp_rows_can_tell_a_shifted_token(golden: dict[str, np.ndarray]) -> None:
    """Rows of the golden drafts differ by far more than the tolerance, so that an off-by-one cannot pass."""
    drafts = golden["mtp_logits"]
    assert np.abs(drafts[1:] - drafts[:-1]).max(axis=1).min() > 100 * TOLERANCE
