"""A server that answers as vLLM does, one that answers otherwise, and one that answers nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sterna.chat.messages import (
    ChatRequest,
    End,
    Message,
    ReasoningDelta,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallEnd,
    ToolCallError,
)
from sterna.cli.main import main
from sterna.delegate import RemoteService, probe
from sterna.errors import BackendError, ContextOverflowError, SternaError, UsageError
from sterna.types import FinishReason, SamplingParams

URL = "http://engine/v1"
MODELS = {"data": [{"id": "qwen", "max_model_len": 262_144}]}
USAGE = {"prompt_tokens": 9000, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8960}}


def sse(*deltas: dict[str, Any], finish: str | None = "stop", usage: dict[str, Any] | None = None) -> bytes:
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    if finish:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    events.append({"choices": [], "usage": usage or USAGE})
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def service(answer: Callable[[dict[str, Any]], httpx.Response], models: Any = MODELS) -> RemoteService:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return models if isinstance(models, httpx.Response) else httpx.Response(200, json=models)
        return answer(json.loads(request.content))

    return RemoteService(URL, client=httpx.Client(transport=httpx.MockTransport(handle)))


def streams(body: bytes) -> Callable[[dict[str, Any]], httpx.Response]:
    return lambda request: httpx.Response(200, content=body, headers={"content-type": "text/event-stream"})


HELLO = ChatRequest((Message("user", "Hello"),))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_a_turn_with_reasoning(key: str) -> None:
    body = sse({"role": "assistant"}, {key: "Well"}, {key: ", now"}, {"content": "Hi"}, {"content": "!"})
    events = list(service(streams(body)).chat(HELLO))
    assert events[:4] == [ReasoningDelta("Well"), ReasoningDelta(", now"), TextDelta("Hi"), TextDelta("!")]
    end = events[-1]
    assert isinstance(end, End) and end.finish_reason is FinishReason.STOP
    assert (end.message.content, end.message.reasoning) == ("Hi!", "Well, now")
    assert (end.usage.prompt_tokens, end.usage.cached_tokens, end.usage.computed_tokens) == (9000, 8960, 40)


def test_tool_calls_arrive_in_pieces() -> None:
    body = sse(
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "bash", "arguments": '{"comm'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'and": "ls"}'}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "submit", "arguments": ""}}]},
        {"tool_calls": [{"index": 2, "id": "c3", "function": {"name": "bash", "arguments": "[1"}}]},
        finish="tool_calls",
    )
    events = list(service(streams(body)).chat(HELLO))
    assert [e.call for e in events if isinstance(e, ToolCallEnd)] == [
        ToolCall("bash", {"command": "ls"}, "c1"), ToolCall("submit", {}, "c2"),
    ]  # fmt: skip
    assert [(e.index, e.id) for e in events if isinstance(e, ToolCallError)] == [(2, "c3")]
    assert isinstance(events[-1], End) and len(events[-1].message.tool_calls) == 2


def test_what_is_asked() -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> httpx.Response:
        seen.append(body)
        return streams(sse({"content": "x"}))(body)

    history = (
        Message("user", "a"), Message("assistant", "b", "why", (ToolCall("f", {"x": 1}, "c1"),)),
        Message("tool", "2", tool_call_id="c1"),
    )  # fmt: skip
    sampling = SamplingParams(temperature=0.5, top_k=20, seed=7, max_tokens=9, presence_penalty=1.5, stop=("END",))
    tool = Tool("f", "does", {"type": "object"})
    list(service(answer).chat(ChatRequest(history, (tool,), sampling, enable_thinking=False)))
    body = seen[0]
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "preserve_thinking": True}
    assert (body["temperature"], body["top_k"], body["seed"], body["max_tokens"]) == (0.5, 20, 7, 9)
    assert (body["presence_penalty"], body["stop"], body["stream"]) == (1.5, ["END"], True)
    assert "repetition_penalty" not in body
    assert body["messages"][1]["reasoning_content"] == "why"
    assert json.loads(body["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"x": 1}
    assert body["messages"][2]["tool_call_id"] == "c1" and body["tools"][0]["function"]["name"] == "f"


def test_plain_text() -> None:
    body = b'data: {"choices": [{"text": "a"}]}\n\ndata: {"choices": [{"text": "b"}]}\n\ndata: [DONE]\n\n'
    assert list(service(streams(body)).complete("x", SamplingParams())) == ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (lambda b: httpx.Response(500, text="boom"), BackendError, "HTTP 500: boom"),
        (lambda b: httpx.Response(401, json={"error": {"message": "no key"}}), BackendError, "HTTP 401: no key"),
        (lambda b: httpx.Response(400, json={"error": {"message": "maximum context length is 8 tokens"}}),
         ContextOverflowError, "maximum context length"),
        (streams(b"data: {oops\n\n"), BackendError, "not JSON"),
        (streams(b"data: [1]\n\n"), BackendError, "not an object"),
        (streams(b'data: {"error": {"message": "out of memory"}}\n\n'), BackendError, "reports: out of memory"),
        (streams(sse({"content": "x"}, finish=None)), BackendError, "without a finish reason"),
        (streams(b"<html>"), BackendError, "without a finish reason"),
    ],
)  # fmt: skip
def test_nonsense_is_one_sentence(answer: Any, error: type[SternaError], words: str) -> None:
    with pytest.raises(error, match=words):
        list(service(answer).chat(HELLO))


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (httpx.Response(200, text="<html>"), "list of models"),
        (httpx.Response(200, json={"data": []}), "list of models"),
        (httpx.Response(200, json={"data": [{"id": 3}]}), "list of models"),
        (httpx.Response(404, text="no"), "HTTP 404"),
    ],
)
def test_an_endpoint_that_is_none(models: httpx.Response, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        service(streams(b""), models)


def test_nothing_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="nothing answers"):
        RemoteService("http://127.0.0.1:9/v1")
    with pytest.raises(UsageError, match="begins with http"):
        RemoteService("localhost")
    assert main(["run", "-p", "x", "--endpoint", "http://127.0.0.1:9/v1"]) == 1
    assert main(["run", "-p", "x", "--endpoint", "http://127.0.0.1:9/v1", "--model", "."]) == 2
    assert main(["serve", "--endpoint", "http://127.0.0.1:9/v1"]) == 2
    assert main(["serve", "--check", "http://127.0.0.1:9/v1"]) == 1
    assert capsys.readouterr().err.count("nothing answers") == 2


def answers(thinking: str = "2 + 2", call: bool = True, off: str = "") -> Callable[[dict[str, Any]], httpx.Response]:
    def answer(body: dict[str, Any]) -> httpx.Response:
        if body.get("tools"):
            function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
            part = {"tool_calls": [{"index": 0, "id": "c", "function": function}]} if call else {"content": "Sunny"}
            return streams(sse(part, finish="tool_calls" if call else "stop"))(body)
        enabled = body["chat_template_kwargs"]["enable_thinking"]
        reasoning = [
            {"reasoning": text}
            for text in ([thinking] if enabled and thinking else [off] if off and not enabled else [])
        ]
        return streams(sse(*reasoning, {"content": "42, and the code is 7461"}))(body)

    return answer


def metrics(text: str | None) -> httpx.Client:
    handler = lambda request: httpx.Response(200, text=text) if text is not None else httpx.Response(404)
    return httpx.Client(transport=httpx.MockTransport(handler))


def results(remote: RemoteService, text: str | None) -> dict[str, tuple[str, str]]:
    checks = probe(remote, metrics(text), long_tokens=200)
    return {check.name: (check.status, check.detail) for check in checks}


def test_a_good_endpoint() -> None:
    text = (
        'vllm:spec_decode_num_draft_tokens_total{m="q"} 100\nvllm:spec_decode_num_accepted_tokens_total{m="q"} 83.0\n'
    )
    found = results(service(answers()), text)
    assert {status for status, _ in found.values()} == {"PASS"}
    assert "83 of 100 drafted tokens accepted (83.0%)" in found["speculation"][1]
    assert "8,960 of them from the cache" in found["long prompt"][1]


def test_an_endpoint_without_parsers() -> None:
    found = results(service(answers(thinking="", call=False, off="hm")), None)
    assert {name for name, (status, _) in found.items() if status == "FAIL"} == {
        "thinking on",
        "thinking off",
        "tool call",
    }
    assert found["speculation"] == ("SKIP", "no counters at /metrics (HTTP 404)")


def test_errors_while_probing_are_failures() -> None:
    found = results(service(lambda body: httpx.Response(500, text="boom")), "")
    assert [found[name][0] for name in ("thinking on", "tool call", "long prompt")] == ["FAIL"] * 3
