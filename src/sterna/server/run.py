"""The server as a process: uvicorn with our limits, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator

import uvicorn

from sterna.server.app import make_app
from sterna.server.auth import Guard
from sterna.server.service import Service

_DRAIN_S = 30.0


class Server(uvicorn.Server):
    """Ends running answers before it closes their connections; the process then exits with 0."""

    def __init__(self, service: Service, guard: Guard, *, host: str, port: int) -> None:
        config = uvicorn.Config(
            make_app(service, guard),
            host=host,
            port=port,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(_DRAIN_S),
            h11_max_incomplete_event_size=service.limits.header_bytes,
        )
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let running answers finish, close."""
        self._service.draining = True
        await super().shutdown(sockets=sockets)
        await self._service.drain(1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does it, but without raising the signal again: an asked-for end is no failure."""
        with contextlib.suppress(KeyboardInterrupt), super().capture_signals():
            yield
            self._captured_signals.clear()


def serve(service: Service, guard: Guard, *, host: str, port: int) -> None:
    """Serve until a signal asks for the end."""
    server = Server(service, guard, host=host, port=port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    address, bound = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    print(f"serving {service.llm.name} at http://{shown}:{bound}/v1", file=sys.stderr, flush=True)
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        service.close()
        listener.close()
