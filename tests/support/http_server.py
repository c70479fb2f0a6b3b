"""The real server on a free port of this machine, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import httpx

from sterna.llm import LLM
from sterna.server.auth import Guard
from sterna.server.limits import Limits
from sterna.server.run import Server
from sterna.server.service import Service


@contextlib.contextmanager
def running(llm: LLM, *, limits: Limits | None = None, guard: Guard | None = None) -> Iterator[Running]:
    """A server that is up inside the block."""
    service = Service(llm, limits or Limits())
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Server(service, guard or Guard.make(bind="127.0.0.1", hashes={}), host="127.0.0.1", port=port)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
        for _ in range(500):
            if server.started:
                break
            thread.join(0.01)
        assert server.started
        try:
            yield Running(service, client, port)
        finally:
            server.should_exit = True
            thread.join(20)
            service.close()
            listener.close()
            assert not thread.is_alive()


class Running:
    """A server and a client of it."""

    def __init__(self, service: Service, client: httpx.Client, port: int) -> None:
        self.service = service
        self.client = client
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}"

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """POST of a JSON body."""
        return self.client.post(path, json=body, headers=headers)

    def stream(self, path: str, body: dict, **headers: str) -> list[tuple[str | None, object]]:
        """All events of a streamed answer: (name or None, decoded data)."""
        response = self.client.post(path, json={**body, "stream": True}, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse_events(response.text)


def parse_events(text: str) -> list[tuple[str | None, object]]:
    """Server-sent events; data that is not JSON stays text."""
    assert text.endswith("\n\n")
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = block.split("\n")
        name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
        assert len(lines) == 1 and lines[0].startswith("data: "), block
        payload = lines[0].removeprefix("data: ")
        events.append((name, payload if payload == "[DONE]" else json.loads(payload)))
    return events
