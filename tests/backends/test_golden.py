"""Logits of every backend against the golden reference (transformers, float32)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sterna.backends.common import ModelBackend
from sterna.ops import tolerances
from support.golden import BACKENDS, Piece, Stream, logits_of, open_backend, reference


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[ModelBackend]:
    opened = open_backend(BACKENDS[request.param])
    yield opened
    opened.close()


def assert_golden(logits: np.ndarray, expected: np.ndarray) -> None:
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() <= tolerances.GOLDEN_LOGITS


def test_prefill(backend: ModelBackend) -> None:
    ids, full = reference()["ids"][0], reference()["full"][0]
    assert_golden(logits_of(backend, Piece(Stream(), ids)), full)
