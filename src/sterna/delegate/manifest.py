"""A launch as text: shell commands, or a Kubernetes manifest."""

from __future__ import annotations

import json
import shlex

from sterna.delegate.engine import Launch, LaunchRequest, settings
from sterna.errors import UsageError

FORMATS = ("shell", "kubernetes")


def as_shell(launch: Launch) -> str:
    """Commands to paste, one per node, with the notes as comments."""
    lines = [f"# {note}" for note in launch.notes]
    variables = " ".join(f"{name}={value}" for name, value in launch.environment.items())
    for rank, command in enumerate(launch.commands):
        if len(launch.commands) > 1:
            lines.append(f"# node {rank}{' (the head; put its address in place of HEAD)' if rank == 0 else ''}")
        lines.append(" ".join(filter(None, [variables, shlex.join(command)])))
    return "\n".join(lines)


def as_kubernetes(launch: Launch, request: LaunchRequest) -> str:
    """A Deployment and a Service for one node; the health check waits as long as loading 72 GB takes."""
    if request.nodes > 1:
        raise UsageError(
            f"a Kubernetes manifest for {request.nodes} nodes is not written, allowed is 1",
            hint="use --print shell on a Ray cluster, or an operator of the engine",
        )
    table = settings(request.engine)
    name = f"sterna-{request.engine}"
    environment = "".join(
        f"\n            - name: {key}\n              value: {json.dumps(value)}"
        for key, value in launch.environment.items()
    )
    arguments = "".join(f"\n            - {json.dumps(part)}" for part in launch.commands[0])
    env = f"\n          env:{environment}" if environment else ""
    return f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
spec:
  replicas: 1
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
      containers:
        - name: engine
          image: {table["image"]}
          command:{arguments}{env}
          ports:
            - containerPort: {request.port}
          resources:
            limits: {{nvidia.com/gpu: {request.tensor_parallel}}}
          readinessProbe:
            httpGet: {{path: /health, port: {request.port}}}
            periodSeconds: 10
            failureThreshold: 180
          volumeMounts:
            - {{name: shm, mountPath: /dev/shm}}
      volumes:
        # ranks exchange tensors through shared memory
        - name: shm
          emptyDir: {{medium: Memory}}
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector: {{app: {name}}}
  ports:
    - {{port: {request.port}, targetPort: {request.port}}}
"""
