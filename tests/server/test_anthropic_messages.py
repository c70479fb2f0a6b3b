"""Messages over real HTTP: the grammar of the stream, history, deferred tools, errors."""

from __future__ import annotations

import json

import pytest

from support.chat import EDIT, WEATHER

PATH = "/v1/messages?beta=true"
TOOLS = [{"name": t.name, "description": t.description, "input_schema": dict(t.parameters)} for t in (WEATHER, EDIT)]
THINKING = {"thinking": {"type": "adaptive", "display": "omitted"}}


def body(text, **more):
    return {"model": "any", "max_tokens": 32000, "messages": [{"role": "user", "content": text}], **more}


def check_stream(events):
    """The grammar of a stream; returns the message that it adds up to."""
    assert all(name == data["type"] for name, data in events)
    events = [data for _, data in events if data["type"] != "ping"]
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    message = events[0]["message"]
    assert message["content"] == [] and message["usage"]["input_tokens"] > 0
    block = partial = None
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert block is None and event["index"] == len(message["content"])
            block, partial = event["content_block"], ""
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            assert event["index"] == len(message["content"])
            if delta["type"] == "input_json_delta":
                partial += delta["partial_json"]
            elif delta["type"] == "signature_delta":
                block["signature"] = delta["signature"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        else:
            assert event["type"] == "content_block_stop"
            if block["type"] == "tool_use":
                block["input"] = json.loads(partial)
            message["content"].append(block)
            block = None
    assert block is None and events[-2]["type"] == "message_delta"
    return {**message, **events[-2]["delta"], "usage": events[-2]["usage"]}


@pytest.mark.parametrize("text", ["hello", "call", "two calls", "unknown tool", "broken"])
@pytest.mark.parametrize("mode", [THINKING, {}], ids=["thinking", "plain"])
def test_streamed_and_whole_answers_are_equal(server, text, mode):
    request = body(text, tools=TOOLS, **mode)
    streamed = check_stream(server.stream(PATH, request))
    whole = server.post(PATH, request).json()
    kinds = [block["type"] for block in whole["content"]]
    assert ("thinking" in kinds) == bool(mode)
    for message in (streamed, whole):
        for block in message["content"]:
            block.pop("signature", None)
            block.pop("id", None)
    assert whole["content"] == streamed["content"]
    assert whole["stop_reason"] == streamed["stop_reason"] == ("tool_use" if "tool_use" in kinds else "end_turn")


def test_the_next_request_computes_its_new_tokens_only(server):
    """The client writes a default of its own into the arguments and drops the thinking text but not its signature."""
    request = body("call", tools=TOOLS, **THINKING)
    first = server.post(PATH, request).json()
    sent = json.loads(json.dumps(first["content"]))
    sent[0]["thinking"] = ""
    sent[-1]["input"] = {"replace_all": False, **sent[-1]["input"]}
    result = {"type": "tool_result", "tool_use_id": sent[-1]["id"], "content": [{"type": "text", "text": "sunny"}]}
    history = [*request["messages"], {"role": "assistant", "content": sent}, {"role": "user", "content": [result]}]
    second = server.post(PATH, {**request, "messages": history}).json()["usage"]
    usage = first["usage"]
    known = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["output_tokens"] - 1
    assert second["cache_read_input_tokens"] == known


def test_billing_header_and_cache_markers_do_not_reach_the_prompt(server):
    def tokens(**more):
        return server.post("/v1/messages/count_tokens", body("hello", **more)).json()["input_tokens"]

    block = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    header = {"type": "text", "text": "x-anthropic-billing-header: cc_version=1.00b; x=y;"}
    assert tokens(system=[header, block]) == tokens(system="Be brief.") > tokens()


def test_a_deferred_tool_stays_out_of_the_head_and_can_be_called(server):
    deferred = [{**TOOLS[0], "defer_loading": True}, TOOLS[1]]
    count = "/v1/messages/count_tokens"
    head = server.post(count, body("call", tools=[TOOLS[1]])).json()
    assert server.post(count, body("call", tools=deferred)).json() == head
    use = {"type": "tool_use", "id": "t1", "name": "edit", "input": {}}
    reference = {"type": "tool_reference", "tool_name": "get_weather"}
    messages = [
        {"role": "user", "content": "find"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [reference]}]},
        {"role": "user", "content": "call"},
    ]
    answer = server.post(PATH, body("", tools=deferred) | {"messages": messages}).json()
    assert answer["content"][-1]["input"] == {"city": 'Genève "élan"'}


def test_system_messages_may_stand_anywhere(server):
    late = {"role": "system", "content": [{"type": "text", "text": "note"}]}
    messages = [{"role": "user", "content": "hello"}, late]
    assert server.post(PATH, body("") | {"messages": messages}).json()["content"][0]["text"] == "Hello — 你好 😀!"


def test_stop_sequences_and_limits(server):
    answer = server.post(PATH, body("long", stop_sequences=["word7 "])).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "word7 ")
    assert server.post(PATH, body("long", max_tokens=3)).json()["stop_reason"] == "max_tokens"


def test_overflow_has_the_words_that_make_clients_compact(server):
    answer = server.post(PATH, body("many words " * 20_000))
    error = answer.json()
    assert answer.status_code == 400 and error["type"] == "error"
    count = server.post("/v1/messages/count_tokens", body("many words " * 20_000)).json()["input_tokens"]
    assert error["error"] == {
        "type": "invalid_request_error", "message": f"prompt is too long: {count} tokens > 16383 maximum",
    }  # fmt: skip
