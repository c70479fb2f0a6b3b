"""Checkpoints from a model hub, a mirror of it or a directory: found, chosen, transferred, verified, recorded."""

from sterna.hub.local import pull_directory
from sterna.hub.pull import OFFICIAL_REPOSITORY, PullRequest, PullResult, pull
from sterna.hub.record import Pulled, pulled_checkpoints

__all__ = [
    "OFFICIAL_REPOSITORY",
    "PullRequest",
    "PullResult",
    "Pulled",
    "pull",
    "pull_directory",
    "pulled_checkpoints",
]
