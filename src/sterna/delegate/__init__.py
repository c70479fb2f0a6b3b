"""Beyond one machine: other engines are started with the right settings, checked, and used as a `GenerationService`."""

from sterna.delegate.engine import ENGINES, Launch, LaunchRequest, plan_launch
from sterna.delegate.probe import probe
from sterna.delegate.service import RemoteService

__all__ = ["ENGINES", "Launch", "LaunchRequest", "RemoteService", "plan_launch", "probe"]
