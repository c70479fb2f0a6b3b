"""The sandbox ladder: bubblewrap, else Landlock and seccomp (weaker), else none, and that only by choice."""

from sterna.agent.sandbox.base import Launch, Limits, Sandbox, check_workspace
from sterna.agent.sandbox.choose import RUNGS, choose_sandbox

__all__ = ["RUNGS", "Launch", "Limits", "Sandbox", "check_workspace", "choose_sandbox"]
