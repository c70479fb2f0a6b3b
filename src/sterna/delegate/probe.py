"""Does a running endpoint do what an agent needs: models, thinking on and off, a tool call, a long prompt, its counters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sterna.chat.messages import ChatRequest, End, Message, Tool
from sterna.delegate.service import RemoteService
from sterna.errors import SternaError
from sterna.types import SamplingParams
from sterna.verify.checks import FAIL, PASS, SKIP, Check, failed

if TYPE_CHECKING:
    import httpx

GREEDY = SamplingParams(temperature=0.0, max_tokens=512)
WEATHER = Tool(
    "get_weather", "The weather in a city, now",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)  # fmt: skip
# About so many tokens of filling around the fact that the long prompt asks for.
LONG_TOKENS = 8_000
_METRIC = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+([0-9.eE+-]+)\s*$", re.MULTILINE)
_ACCEPTED = ("vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens")
_DRAFTED = ("vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_draft_tokens")
_LENGTH = ("sglang:spec_accept_length",)


def probe(service: RemoteService, client: httpx.Client, *, long_tokens: int = LONG_TOKENS) -> Iterator[Check]:
    """The checks one after the other; ``client`` reads the counters that lie beside the API."""
    yield Check("models", PASS, f"{service.name}, context of {service.max_model_len:,} tokens")
    for name, check in (
        ("thinking on", lambda: _thinking(service, enabled=True)),
        ("thinking off", lambda: _thinking(service, enabled=False)),
        ("tool call", lambda: _tool_call(service)),
        ("long prompt", lambda: _long_prompt(service, long_tokens)),
    ):
        yield _guarded(name, check)
    yield _acceptance(service, client)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except SternaError as error:
        return failed(name, error)


def _ask(service: RemoteService, request: ChatRequest) -> End:
    end = None
    for event in service.chat(request):
        if isinstance(event, End):
            end = event
    assert end is not None, "a service ends every turn with End"
    return end


def _thinking(service: RemoteService, *, enabled: bool) -> Check:
    name = "thinking on" if enabled else "thinking off"
    question = ChatRequest(
        (Message("user", "What is 17 + 25? Answer briefly."),), sampling=GREEDY, enable_thinking=enabled
    )
    end = _ask(service, question)
    text, reasoning = str(end.message.content or ""), end.message.reasoning or ""
    if "<think>" in text or "</think>" in text:
        return Check(
            name, FAIL, "tags of reasoning stand in the answer", "start the engine with its reasoning parser: qwen3"
        )
    if enabled and not reasoning:
        return Check(name, FAIL, "no reasoning came", "start the engine with its reasoning parser: qwen3")
    if not enabled and reasoning:
        return Check(
            name, FAIL, f"{len(reasoning)} characters of reasoning came", "the switch enable_thinking has no effect"
        )
    return Check(name, PASS, f"{len(reasoning)} characters of reasoning, {len(text)} of answer")


def _tool_call(service: RemoteService) -> Check:
    question = "What is the weather in Paris? Use the tool."
    end = _ask(
        service, ChatRequest((Message("user", question),), tools=(WEATHER,), sampling=GREEDY, enable_thinking=False)
    )
    if not end.message.tool_calls:
        hint = "start the engine with its tool parser: qwen3_coder"
        return Check("tool call", FAIL, f"no call came, but {str(end.message.content)[:80]!r}", hint)
    call = end.message.tool_calls[0]
    good = call.name == "get_weather" and isinstance(call.arguments.get("city"), str)
    return Check("tool call", PASS if good else FAIL, f"{call.name}({dict(call.arguments)})")


def _long_prompt(service: RemoteService, tokens: int) -> Check:
    """The same long prompt twice: it must be read whole, and the second time it should come from the cache."""
    tokens = min(tokens, service.max_model_len // 2)
    lines = [f"Line {i}: the tern flies on, and nothing of note happens here." for i in range(tokens // 18)]
    lines.insert(len(lines) // 3, "Remember this: the code is 7461.")
    request = ChatRequest(
        (Message("user", "\n".join([*lines, "Which code did the text name? Answer with the number."])),),
        sampling=GREEDY, enable_thinking=False,
    )  # fmt: skip
    first, second = _ask(service, request), _ask(service, request)
    found = "7461" in str(first.message.content)
    cached = second.usage.cached_tokens
    words = f"{first.usage.prompt_tokens:,} tokens read, {cached:,} of them from the cache the second time"
    if not first.usage.prompt_tokens:
        return Check("long prompt", FAIL, "the server counts no tokens", "its answers must carry usage")
    if not found:
        return Check("long prompt", SKIP, f"{words}; the number in it was not found, which a small model may miss")
    hint = None if cached else "no prefix cache, or one that reports no counters"
    return Check("long prompt", PASS, words, hint)


def _acceptance(service: RemoteService, client: httpx.Client) -> Check:
    """How many drafted tokens were accepted, from the engine's own counters."""
    import httpx

    try:
        response = client.get(service.url.removesuffix("/v1") + "/metrics")
    except httpx.TransportError as error:
        return Check("speculation", SKIP, f"no counters at /metrics ({type(error).__name__})")
    if response.status_code != 200:
        return Check("speculation", SKIP, f"no counters at /metrics (HTTP {response.status_code})")
    values: dict[str, float] = {}
    for name, value in _METRIC.findall(response.text):
        values[name] = values.get(name, 0.0) + float(value)
    drafted = next((values[name] for name in _DRAFTED if name in values), 0.0)
    accepted = next((values[name] for name in _ACCEPTED if name in values), 0.0)
    length = next((values[name] for name in _LENGTH if name in values), 0.0)
    if drafted:
        return Check(
            "speculation", PASS, f"{accepted:,.0f} of {drafted:,.0f} drafted tokens accepted ({accepted / drafted:.1%})"
        )
    if length:
        return Check("speculation", PASS, f"{length:.2f} tokens accepted per step")
    return Check("speculation", SKIP, "the engine counts no drafts: it runs without speculation")
