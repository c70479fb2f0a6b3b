"""Runs commands in an Environment and prints the results: a process of its own, so that it can be another user's.

Reads from standard input {"package", "rung", "workspace", "limits", "commands": [[command, timeout_s], …]}.
"""

import dataclasses
import json
import sys
from pathlib import Path

request = json.loads(sys.stdin.read())
sys.path[:0] = request["package"]

from sterna.agent.environment import Environment  # noqa: E402
from sterna.agent.sandbox import Limits, choose_sandbox  # noqa: E402

sandbox = choose_sandbox(request["rung"])
with Environment(Path(request["workspace"]), sandbox=sandbox, limits=Limits(**request["limits"])) as environment:
    results = [dataclasses.asdict(environment.run(command, timeout_s=limit)) for command, limit in request["commands"]]
print(json.dumps({"name": sandbox.name, "notice": sandbox.notice, "results": results}))
