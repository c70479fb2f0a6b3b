from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sterna.hub import PullRequest, PullResult, pull
from support.hub_double import HubDouble, directory_files
from support.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return directory_files(write_tiny_checkpoint(tmp_path_factory.mktemp("hub") / "tiny"))


@pytest.fixture
def waited() -> list[float]:
    return []


@pytest.fixture
def pull_from(tmp_path: Path, waited: list[float]) -> Callable[..., PullResult]:
    """Pull from a double without waiting; how long it would have waited is in ``waited``."""

    def do(hub: HubDouble, **options: object) -> PullResult:
        given = {"repo_id": hub.repo_id, "endpoint": hub.endpoint, "workers": 2, **options}
        request = PullRequest(tmp_path / "models", **given)  # type: ignore[arg-type]
        return pull(request, say=lambda text: None, sleep=waited.append)

    return do
