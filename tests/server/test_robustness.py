"""Keys, names, limits, leaving clients, silence, many at once, hostile bodies."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sterna.errors import UsageError
from sterna.server.auth import Guard, KeyFile
from sterna.server.limits import Limits
from support.http_server import parse_events, running
from support.scripted_backend import scripted_llm
from support.scripts import answer

CHAT = "/v1/chat/completions"
PATHS = (CHAT, "/v1/responses", "/v1/messages", "/v1/completions", "/v1/messages/count_tokens")


def chat(text, **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


@pytest.fixture(scope="module")
def small():
    """A server of its own with small limits, whose model can be stopped."""
    limits = Limits(max_active=2, max_waiting=1, body_bytes=100_000, keep_alive_s=0.05)
    llm = scripted_llm(answer)
    with running(llm, limits=limits) as found:
        yield found, llm.backend.gate


def test_foreign_hosts_and_origins_are_refused(server):
    assert server.client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert server.client.get("/v1/models", headers={"Host": "[::"}).status_code == 403
    assert server.client.get("/v1/models", headers={"Origin": "http://evil.example"}).status_code == 403
    own = {"Origin": server.base_url}
    answer = server.client.get("/v1/models", headers=own)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_keys(tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.create("default")
    assert key not in (tmp_path / "keys.json").read_text()
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    guard = Guard.make(bind="0.0.0.0", hashes=keys.load())
    with running(scripted_llm(answer), guard=guard) as found:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": key[:-1]}):
            refused = found.client.get("/v1/models", headers=headers)
            assert refused.status_code == 401 and "www-authenticate" in refused.headers
        for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
            assert found.client.get("/v1/models", headers=headers).status_code == 200
        assert found.client.get("/health").status_code == 200


def test_other_addresses_demand_a_key():
    with pytest.raises(UsageError, match="no key is set"):
        Guard.make(bind="0.0.0.0", hashes={})


def test_unknown_paths_and_methods_are_json_errors(server):
    assert server.client.get("/api/hello").json()["error"]["type"] == "not_found_error"
    assert server.client.get(CHAT).status_code == 405
    assert server.client.head("/api/hello").status_code == 404
    assert server.client.get("/v1/messages/x").json()["type"] == "error"
    for path in ("//v1//models", "/models", "/v1/v1/models"):
        assert server.client.get(path).status_code == 200


def test_health_metrics_and_openapi(server):
    assert server.client.get("/health/live").json() == {"status": "ok"}
    assert 'sterna_requests_total{path="/health/live",status="200"}' in server.client.get("/metrics").text
    assert CHAT in server.client.get("/openapi.json").json()["paths"]


def test_bodies_have_limits(small):
    server, _ = small
    assert server.client.post(CHAT, content=b"x" * 100_001).status_code == 413
    deep = "[" * 5_000 + "]" * 5_000
    for content in (deep, '{"messages": ' + deep + "}", "[]", "", "{", '{"temperature": NaN}', b"\xff"):
        assert server.client.post(CHAT, content=content).status_code == 400


def test_silence_is_filled_with_real_data(small):
    server, gate = small
    gate.clear()
    try:
        with ThreadPoolExecutor() as pool:
            futures = [
                pool.submit(server.stream, path, chat("hello", input="hello", max_tokens=50))
                for path in ("/v1/responses", "/v1/messages")
            ]
            with server.client.stream("POST", CHAT, json=chat("hello", stream=True)) as third:
                pieces = third.iter_text()
                text = next(pieces)
                while text.count('"delta":{}') < 2:
                    text += next(pieces)
                gate.set()
                text += "".join(pieces)
            names = [[data["type"] for _, data in future.result()] for future in futures]
    finally:
        gate.set()
    assert "Hello" in "".join(d["choices"][0]["delta"].get("content", "") for _, d in parse_events(text)[:-1])
    assert names[0].count("response.in_progress") > 1 and "ping" in names[1]


def test_a_client_that_leaves_frees_its_place(small):
    server, gate = small
    engine = server.service.llm.engine
    with server.client.stream("POST", CHAT, json=chat("long", stream=True)) as response:
        next(response.iter_text())
        gate.clear()
    gate.set()
    wait_for(lambda: not engine.has_work and server.service.admission.active == 0)
    gate.clear()
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(CHAT, json=chat("hello again"), timeout=0.3)
    gate.set()
    wait_for(lambda: not engine.has_work and server.service.admission.active == 0)


def test_a_full_queue_is_refused_with_retry_after(small):
    server, gate = small
    gate.clear()
    try:
        with ThreadPoolExecutor() as pool:
            futures = [pool.submit(server.post, CHAT, chat("hello")) for _ in range(3)]
            wait_for(lambda: server.service.admission.active + server.service.admission.waiting == 3)
            refused = server.post(CHAT, chat("hello"))
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            gate.set()
            assert [future.result().status_code for future in futures] == [200] * 3
    finally:
        gate.set()


def test_sixteen_streams_are_equal_to_their_solo_runs(server):
    def text(name):
        events = server.stream(CHAT, chat(name))
        return "".join(data["choices"][0]["delta"].get("content", "") for _, data in events[:-1])

    names = [f"question number {index} of many" for index in range(14)] + ["long", "hello"]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(text, names))
    assert together == [text(name) for name in names]
    assert len(set(together)) == 16


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "messages", "input", "prompt", "role", "content", "type", "text", "tools", "tool_choice", "tool_calls",
        "function", "name", "arguments", "system", "thinking", "stop", "n", "temperature", "logit_bias",
        "response_format", "json_schema", "reasoning", "id", "call_id", "output", "summary", "parameters",
        "stream_options", "chat_template_kwargs", "max_tokens", "top_k", "seed", "instructions", "include",
    ]
)  # fmt: skip
WORDS = st.sampled_from(
    [
        "user", "assistant", "system", "tool", "function", "message", "reasoning", "text", "image_url", "tool_use",
        "tool_result", "thinking", "function_call", "function_call_output", "custom", "namespace", "json_schema",
        "enabled", "\ud800",
    ]
)  # fmt: skip
SHAPED = st.recursive(
    JSON | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PATHS), st.dictionaries(NAMES, SHAPED, max_size=6))
def test_hostile_bodies_are_answered_or_refused(server, path, body):
    body = {**body, "max_tokens": 2, "max_output_tokens": 2, "stream": False}
    response = server.client.post(path, content=json.dumps(body))
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["message"]


def test_garbage_on_the_wire_ends_the_connection_only(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"\x00\xffnonsense\r\n\r\n")
        assert b"400" in connection.recv(100)
    assert server.client.get("/health").status_code == 200
