from __future__ import annotations

import pytest

from support.http_server import running
from support.scripted_backend import scripted_llm
from support.scripts import answer


@pytest.fixture(scope="package")
def server():
    """A server with a scripted model that all tests of a run share."""
    with running(scripted_llm(answer)) as found:
        yield found
