"""Responses over real HTTP: the grammar of the stream, items, stored responses."""

from __future__ import annotations

import json

import pytest

from support.chat import EDIT, WEATHER

PATH = "/v1/responses"
TOOLS = [
    {"type": "function", "name": t.name, "parameters": dict(t.parameters), "strict": False} for t in (WEATHER, EDIT)
]


def body(text, **more):
    return {"model": "any", "input": text, "store": False, **more}


def check_stream(events):
    """The grammar of a stream; returns the final response."""
    assert all(name == data["type"] for name, data in events)
    datas = [data for _, data in events]
    assert [data["sequence_number"] for data in datas] == list(range(len(datas)))
    kinds = [data["type"] for data in datas if data["type"] != "response.in_progress"]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    output, text, is_open = [], "", False
    for data in datas:
        kind = data["type"]
        if kind == "response.output_item.added":
            assert not is_open and data["output_index"] == len(output)
            is_open, text = True, ""
        elif kind.endswith(".delta"):
            assert is_open
            text += data["delta"]
        elif kind.endswith((".text.done", "_text.done")):
            assert data["text"] == text
        elif kind.endswith("arguments.done"):
            assert data["arguments"] == text
        elif kind == "response.output_item.done":
            assert is_open
            output.append(data["item"])
            is_open = False
    response = datas[-1]["response"]
    assert response["output"] == output and not is_open
    return response


def without_ids(output):
    return [
        {name: value for name, value in item.items() if name not in ("id", "call_id", "encrypted_content")}
        for item in output
    ]


@pytest.mark.parametrize("text", ["hello", "call", "two calls", "unknown tool", "broken"])
def test_streamed_and_whole_answers_are_equal(server, text):
    request = body(text, tools=TOOLS, include=["reasoning.encrypted_content"])
    streamed = check_stream(server.stream(PATH, request))
    whole = server.post(PATH, request).json()
    assert without_ids(whole["output"]) == without_ids(streamed["output"])
    reasoning = whole["output"][0]
    assert reasoning["summary"] == [] and reasoning["content"][0]["text"] and reasoning["encrypted_content"]
    assert whole["status"] == "completed"
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_items_sent_back_are_read_from_the_cache(server):
    """Reasoning comes back by its opaque key alone, arguments printed anew."""
    request = body([{"role": "user", "content": "call"}], tools=TOOLS, include=["reasoning.encrypted_content"])
    first = server.post(PATH, request).json()
    items = json.loads(json.dumps(first["output"]))
    items[0]["content"] = []
    items[-1]["arguments"] = json.dumps(json.loads(items[-1]["arguments"]), indent=1)
    result = {"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "sunny"}
    second = server.post(PATH, {**request, "input": [*request["input"], *items, result]}).json()
    known = first["usage"]["total_tokens"] - 1
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == known


def test_stored_responses_are_continued_retrieved_and_deleted(server):
    first = server.post(PATH, {"input": "hello"}).json()
    url = f"{PATH}/{first['id']}"
    assert server.client.get(url).json() == first
    second = server.post(PATH, {"input": "call", "tools": [], "previous_response_id": first["id"]}).json()
    assert second["usage"]["input_tokens"] > first["usage"]["total_tokens"]
    assert server.post(f"{url}/cancel", {}).json() == first
    assert server.client.delete(url).json()["deleted"] is True
    assert server.client.get(url).status_code == 404
    answer = server.post(PATH, {"input": "x", "previous_response_id": first["id"]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "previous_response_id"
    unstored = server.post(PATH, body("hello")).json()
    assert server.client.get(f"{PATH}/{unstored['id']}").status_code == 404


def test_namespace_custom_and_builtin_tools(server):
    inner = {**TOOLS[0], "type": "function"}
    tools = [
        {"type": "namespace", "name": "weather", "tools": [inner]},
        {"type": "web_search", "external_web_access": True},
        {"type": "custom", "name": "edit", "format": {"type": "text"}},
    ]
    call = check_stream(server.stream(PATH, body("call", tools=tools)))["output"][-1]
    assert (call["name"], call["namespace"]) == ("get_weather", "weather")
    kinds = [item["type"] for item in check_stream(server.stream(PATH, body("two calls", tools=tools)))["output"]]
    assert kinds == ["reasoning", "function_call", "custom_tool_call"]


def test_counting_agrees_with_answering(server):
    request = body("hello", instructions="Be brief.", tools=TOOLS)
    counted = server.post(f"{PATH}/input_tokens", request).json()["input_tokens"]
    assert counted == server.post(PATH, request).json()["usage"]["input_tokens"]


def test_a_limit_makes_it_incomplete(server):
    response = check_stream(server.stream(PATH, body("long", max_output_tokens=9)))
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
