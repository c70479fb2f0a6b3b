"""The official Python clients against the real server."""

from __future__ import annotations

import anthropic
import openai
import pytest

from support.chat import WEATHER


@pytest.fixture(scope="module")
def openai_client(server):
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(server):
    with anthropic.Anthropic(base_url=server.base_url, api_key="unused", max_retries=0) as client:
        yield client


def test_openai_chat(openai_client):
    tools = [WEATHER.as_json()]
    messages = [{"role": "user", "content": "call"}]
    with openai_client.chat.completions.stream(model="m", messages=messages, tools=tools) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    whole = openai_client.chat.completions.create(model="m", messages=messages, tools=tools)
    assert whole.choices[0].message.tool_calls[0].function.arguments == (
        final.choices[0].message.tool_calls[0].function.arguments
    )


def test_openai_responses(openai_client):
    with openai_client.responses.stream(model="m", input="hello") as stream:
        final = stream.get_final_response()
    assert final.output_text == "Hello — 你好 😀!"
    follow = openai_client.responses.create(model="m", input="hello", previous_response_id=final.id)
    assert follow.usage.input_tokens_details.cached_tokens > 0
    assert openai_client.responses.retrieve(final.id).output_text == final.output_text


def test_openai_models_and_completions(openai_client):
    [model] = openai_client.models.list().data
    assert openai_client.models.retrieve(model.id).id == "scripted"
    text = openai_client.completions.create(model="m", prompt="once upon", max_tokens=50).choices[0].text
    assert text == " and so on after once upon"
    pieces = openai_client.completions.create(model="m", prompt="once upon", max_tokens=50, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("absent")


def test_anthropic_messages(anthropic_client):
    tools = [{"name": "get_weather", "description": "", "input_schema": dict(WEATHER.parameters)}]
    messages = [{"role": "user", "content": "call"}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with anthropic_client.messages.stream(
        model="m", max_tokens=4096, messages=messages, tools=tools, thinking=thinking
    ) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.stop_reason == "tool_use" and final.content[0].signature
    count = anthropic_client.messages.count_tokens(model="m", messages=messages, tools=tools).input_tokens
    assert count > 0
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: [0-9]+ tokens > 16383 maximum"):
        anthropic_client.messages.create(
            model="m", max_tokens=10, messages=[{"role": "user", "content": "many words " * 20_000}]
        )
