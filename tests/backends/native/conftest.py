"""Every test here runs with outputs pre-filled with NaN, so that an element that no kernel writes is seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sterna import _native


@pytest.fixture(autouse=True)
def nan_filled_outputs() -> Iterator[None]:
    threads = _native.num_threads()
    _native.set_fill_nan(True)
    yield
    _native.set_fill_nan(False)
    _native.set_num_threads(threads)
