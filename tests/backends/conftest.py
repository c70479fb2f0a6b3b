"""The backends under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sterna.backends.common import ModelBackend
from support.golden import BACKENDS, open_backend


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[ModelBackend]:
    """Each backend in turn, with the golden checkpoint; caches keep what earlier tests left, as they do in use."""
    opened = open_backend(BACKENDS[request.param])
    yield opened
    opened.close()
