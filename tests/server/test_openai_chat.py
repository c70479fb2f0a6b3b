"""Chat Completions over real HTTP: shapes, modes, usage, errors."""

from __future__ import annotations

import json

import pytest

from support.chat import EDIT, WEATHER

PATH = "/v1/chat/completions"
TOOLS = [WEATHER.as_json(), EDIT.as_json()]


def body(text, **more):
    return {"model": "any", "messages": [{"role": "user", "content": text}], **more}


def check_stream(events, *, choices=1, usage=True):
    """The grammar of a stream; returns the joined message and finish reason of each choice."""
    assert all(name is None for name, _ in events)
    datas = [data for _, data in events]
    assert datas.pop() == "[DONE]"
    assert len({data["id"] for data in datas}) == 1
    counts = datas.pop() if usage else None
    if counts is not None:
        assert counts["choices"] == []
        assert (
            counts["usage"]["total_tokens"] == counts["usage"]["prompt_tokens"] + counts["usage"]["completion_tokens"]
        )
    joined = [{"content": "", "reasoning_content": "", "calls": []} for _ in range(choices)]
    finished = [None] * choices
    seen = set()
    for data in datas:
        assert data["object"] == "chat.completion.chunk"
        [choice] = data["choices"]
        index, delta = choice["index"], choice["delta"]
        if index not in seen:
            assert delta["role"] == "assistant"
            seen.add(index)
        assert finished[index] is None
        finished[index] = choice["finish_reason"]
        message = joined[index]
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["calls"])
                assert call["type"] == "function" and call["function"]["name"]
                message["calls"].append({"name": call["function"]["name"], "arguments": ""})
            message["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    assert all(finished)
    return joined, finished, counts and counts["usage"]


@pytest.mark.parametrize("text", ["hello", "call", "two calls", "long", "unknown tool", "broken"])
def test_streamed_and_whole_answers_are_equal(server, text):
    request = body(text, tools=TOOLS)
    [joined], [finish], usage = check_stream(
        server.stream(PATH, {**request, "stream_options": {"include_usage": True}})
    )
    whole = server.post(PATH, request).json()
    [choice] = whole["choices"]
    message = choice["message"]
    assert (message["content"] or "") == joined["content"]
    assert message["reasoning_content"] == joined["reasoning_content"] != ""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    assert calls == joined["calls"]
    assert choice["finish_reason"] == finish == ("tool_calls" if calls else "stop")
    for name in ("prompt_tokens", "completion_tokens"):
        assert whole["usage"][name] == usage[name]
    for call in calls:
        json.loads(call["arguments"])
    assert "<" not in joined["content"].replace("<|", "")


def test_arguments_have_the_types_of_the_schema(server):
    message = server.post(PATH, body("two calls", tools=TOOLS)).json()["choices"][0]["message"]
    arguments = [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]]
    assert arguments == [{"city": "Rome"}, {"path": "a.py", "line": 7}]


def test_usage_is_true_to_the_token(server):
    tokenizer = server.service.llm.chat_format.tokenizer
    usage = server.post(PATH, body("hello")).json()["usage"]
    reasoning = len(tokenizer.encode("They greet.\n")) + 1
    text = len(tokenizer.encode("\n\nHello — 你好 😀!")) + 1
    assert usage["completion_tokens"] == reasoning + text
    assert usage["completion_tokens_details"]["reasoning_tokens"] == reasoning


def test_thinking_can_be_switched_off(server):
    for field in (
        {"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}, {"enable_thinking": False},
    ):  # fmt: skip
        answer = server.post(PATH, body("hello", **field)).json()
        assert "reasoning_content" not in answer["choices"][0]["message"]
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_the_next_request_of_a_conversation_computes_its_new_tokens_only(server):
    """The client prints arguments anew, trims, and drops the reasoning; the sampled tokens are used all the same."""
    request = body("call", tools=TOOLS)
    first = server.post(PATH, request).json()
    message = first["choices"][0]["message"]
    call = message["tool_calls"][0]
    arguments = json.dumps(json.loads(call["function"]["arguments"]), separators=(",", ":"))
    sent = {
        "role": "assistant", "content": [{"type": "text", "text": message["content"] + "\n"}],
        "tool_calls": [{**call, "function": {"name": "get_weather", "arguments": arguments}}],
    }  # fmt: skip
    tool = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    second = server.post(PATH, {**request, "messages": [*request["messages"], sent, tool]}).json()
    known = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"] - 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == known


def test_a_changed_turn_is_read_as_the_client_sent_it(server):
    # A conversation of its own: another test's instruct mode opens a turn of the same prompt as a turn without reasoning does.
    request = body("a turn will be changed\ncall", tools=TOOLS)
    first = server.post(PATH, request).json()
    call = first["choices"][0]["message"]["tool_calls"][0]
    sent = {"role": "assistant", "content": "changed", "tool_calls": [call]}
    tool = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    second = server.post(PATH, {**request, "messages": [*request["messages"], sent, tool]}).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] <= first["usage"]["prompt_tokens"]


def test_several_choices(server):
    joined, finished, _ = check_stream(server.stream(PATH, body("hello", n=3)), choices=3, usage=False)
    assert joined[0] == joined[1] == joined[2]
    assert finished == ["stop"] * 3
    assert len(server.post(PATH, body("hello", n=2)).json()["choices"]) == 2


def test_limits_end_the_answer(server):
    answer = server.post(PATH, body("long", max_tokens=5)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    answer = server.post(PATH, body("long", stop=["word7 "])).json()
    assert answer["choices"][0]["message"]["content"].endswith("word6")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert server.post(PATH, body("hello", max_tokens=10**9)).status_code == 200


def test_an_assistant_message_at_the_end_is_continued(server):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Once"}]
    answer = server.post(PATH, {"messages": messages}).json()
    assert answer["choices"][0]["message"]["content"]


def test_tool_choice(server):
    assert "tool_calls" not in server.post(PATH, body("hello", tools=TOOLS, tool_choice="none")).json()["choices"][0]
    named = {"type": "function", "function": {"name": "edit"}}
    assert server.post(PATH, body("call", tools=TOOLS, tool_choice=named)).status_code == 200
    missing = {"type": "function", "function": {"name": "absent"}}
    answer = server.post(PATH, body("call", tools=TOOLS, tool_choice=missing))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "tool_choice"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "owl", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content"),
        ({"logprobs": True}, "logprobs"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 99}, "n"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}, "stream": True}, "logit_bias"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    ],
)
def test_bad_fields_are_refused_by_name(server, change, param):
    answer = server.post(PATH, {**body("hello"), **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_overflow_has_the_words_that_make_clients_compact(server):
    answer = server.post(PATH, body("many words " * 20_000))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 16384 tokens" in error["message"]


def test_an_image_becomes_a_note(server):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]
    answer = server.post(PATH, {"messages": messages}).json()
    assert "cannot see" in answer["choices"][0]["message"]["content"]
