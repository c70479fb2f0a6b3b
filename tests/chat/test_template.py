"""Rendering against the official template, and against what is intended where that template raises."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest

from sterna.chat.messages import ChatRequest, Message, ToolCall
from sterna.chat.normalise import normalise
from sterna.chat.template import ChatTemplate
from sterna.errors import TemplateError, UsageError
from support.chat import (
    EDIT,
    OWN_TEMPLATE,
    WEATHER,
    chat_format,
    compiled,
    intended_rendering,
    official_template,
    run_template,
    shared_directory,
    variables_of,
)

OFFICIAL = official_template()
NO_OFFICIAL = "the official template is not in the repository and not beside it"
needs_official = pytest.mark.skipif(OFFICIAL is None, reason=NO_OFFICIAL)
TEMPLATES = [
    pytest.param(OWN_TEMPLATE, id="own"),
    pytest.param(OFFICIAL, id="official", marks=needs_official),
]
PARIS = ToolCall("get_weather", {"city": "Paris"}, "call_1")
V4 = (
    Message("user", "Weather in Paris?"),
    Message("assistant", "Checking.", "Need tool.", (PARIS,)),
    Message("tool", '{"t": 21}', tool_call_id="call_1"),
    Message("assistant", "21 C", "Done."),
    Message("user", "Thanks"),
)


def render(request: ChatRequest, template: str = OWN_TEMPLATE) -> str:
    return "".join(segment.text for segment in compiled(template).render(normalise(request)))


def tools_text(template: str, request: ChatRequest) -> str:
    """What the template prints about the tools in the first turn."""
    if not request.tools:
        return ""
    rendered = run_template(template, variables_of(replace(request, messages=(Message("user", "x"),))))
    return rendered.removeprefix("<|im_start|>system\n").partition("<|im_end|>\n<|im_start|>user")[0]


@needs_official
@pytest.mark.parametrize(
    ("request_", "length", "digest"),
    [
        (ChatRequest((Message("user", "Hello"),), preserve_thinking=False), 63, "bcff7d22d26a5158"),
        (ChatRequest((Message("user", "Hello"),), enable_thinking=False), 74, "13071b0f0e23e976"),
        (
            ChatRequest((Message("system", "Be brief."), Message("user", "Weather in Paris?")), (WEATHER,)),
            1191,
            "5aeb33a4d75f02ae",
        ),
        (ChatRequest(V4, (WEATHER,), preserve_thinking=False), 1460, "cecac2e5bbd9490e"),
        (ChatRequest(V4, (WEATHER,)), 1513, "55f1b5e2f958e66a"),
    ],
    ids=["V1", "V2", "V3", "V4", "V5"],
)
def test_vectors(request_: ChatRequest, length: int, digest: str) -> None:
    assert OFFICIAL is not None
    text = render(request_, OFFICIAL)
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()[:16]) == (length, digest)


SAID = {
    "system": "  Be brief.\n",
    "developer": "Use tabs.",
    "user": " Fix it \n",
    "assistant": "\nOn it. ",
    "tool": " 2 failed\n\n",
}


def conversation(roles: tuple[str, ...]) -> tuple[Message, ...]:
    return tuple(
        Message(role, f"{SAID[role]}{i}", f" why {i}\n" if role == "assistant" else None)  # type: ignore[arg-type]
        for i, role in enumerate(roles)
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("preserve", [True, False], ids=["preserve", "drop"])
def test_every_order_of_roles_renders_as_intended(template: str, preserve: bool) -> None:
    accepted = 0
    for length in range(5):
        for roles in itertools.product(SAID, repeat=length):
            thinking = length % 2 == 0
            request = ChatRequest(conversation(roles), (), enable_thinking=thinking, preserve_thinking=preserve)
            text = "".join(segment.text for segment in compiled(template).render(normalise(request)))
            assert text == intended_rendering(request, ""), roles
            accepted += 1
    assert accepted == sum(5**n for n in range(5))


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_order_of_roles_with_tools(template: str) -> None:
    text = tools_text(template, ChatRequest((), (WEATHER, EDIT)))
    assert "get_weather" in text
    for roles in itertools.product(SAID, repeat=3):
        request = ChatRequest(conversation(roles), (WEATHER, EDIT))
        rendered = "".join(segment.text for segment in compiled(template).render(normalise(request)))
        assert rendered == intended_rendering(request, text), roles


@needs_official
def test_what_the_official_template_accepts_is_rendered_as_it_does() -> None:
    assert OFFICIAL is not None
    compared, template = 0, OFFICIAL
    for length in range(1, 5):
        for roles in itertools.product(("system", "user", "assistant", "tool"), repeat=length):
            if roles[-1] == "assistant" or roles[0] == "tool":
                # Left open, and printed without a header, respectively.
                continue
            for preserve in (True, False):
                request = ChatRequest(conversation(roles), (WEATHER,), preserve_thinking=preserve)
                try:
                    expected = run_template(OFFICIAL, variables_of(request))
                except jinja2.TemplateError:
                    continue
                assert "".join(s.text for s in compiled(template).render(normalise(request))) == expected, roles
                compared += 1
    assert compared >= 130


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": "Paris"},
    {"city": "  two\nlines  ", "days": 3, "ratio": 0.5, "now": True, "none": None},
    {"list": [1, "a", {"b": 'é <think> " \\ \n'}], "object": {"k": [], "€": "<|im_end|>"}},
    {"empty": "", "space": " \n ", "a b": "key with space"},
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=range(len(ARGUMENTS)))
@pytest.mark.parametrize("content", ["", None, " text ", "\n"], ids=["empty", "none", "text", "blank"])
def test_arguments_are_printed_as_the_template_prints_them(
    template: str, arguments: dict[str, Any], content: Any
) -> None:
    calls = (ToolCall("one", arguments), ToolCall("two", {"x": "y"}))
    messages = (Message("user", "u"), Message("assistant", content, "r", calls), Message("tool", "ok"))
    request = ChatRequest(messages, (WEATHER,))
    expected = run_template(template, variables_of(request))
    assert render(request, template) == expected
    as_text = replace(calls[0], arguments=json.dumps(arguments))  # type: ignore[arg-type]
    again = (messages[0], replace(messages[1], tool_calls=(as_text, calls[1])), messages[2])
    assert render(replace(request, messages=again), template) == expected


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("raw", ["{broken", '"text"', "[1, 2]", "null", "", "  ", "7", "{'a': 1}", "[" * 5000])
def test_damaged_arguments_never_raise(template: str, raw: str) -> None:
    call = ToolCall("f", raw)  # type: ignore[arg-type]
    text = render(ChatRequest((Message("user", "u"), Message("assistant", None, None, (call,)))), template)
    kept = raw.strip() not in ("", "null")
    assert ("<parameter=arguments>" in text) is kept
    assert text.count("<|im_start|>") == 3


@pytest.mark.parametrize("template", TEMPLATES)
def test_deeply_nested_arguments_are_refused_by_name(template: str) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    request = ChatRequest((Message("user", "u"), Message("assistant", None, None, (ToolCall("f", {"a": deep}),))))
    with pytest.raises(TemplateError, match="nested too deeply"):
        render(request, template)


CONTENT_FORMS: list[tuple[Any, str]] = [
    ("plain", "plain"),
    (None, ""),
    ([], ""),
    ([{"type": "text", "text": " a"}, {"type": "text", "text": "b "}], "ab"),
    ([{"type": "input_text", "text": "a"}, "b", {"type": "output_text", "text": "c"}], "abc"),
    ([{"type": "text", "text": None}, {"type": "text"}, {"text": "x"}], "x"),
    ({"type": "text", "text": "alone"}, "alone"),
    ([{"type": "refusal", "refusal": "no"}], "no"),
    ([{"type": "text", "text": "cached", "cache_control": {"type": "ephemeral"}}], "cached"),
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("role", list(SAID))
@pytest.mark.parametrize(("content", "text"), CONTENT_FORMS, ids=range(len(CONTENT_FORMS)))
def test_content_forms(template: str, role: Any, content: Any, text: str) -> None:
    for position in range(3):
        messages = [Message("user", "u"), Message("assistant", "a", "r")]
        plain = list(messages)
        messages.insert(position, Message(role, content))
        plain.insert(position, Message(role, text))
        closing = Message("user", "end")
        request = ChatRequest((*messages, closing))
        assert render(request, template) == intended_rendering(ChatRequest((*plain, closing)), "")


IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
MEDIA: list[tuple[dict[str, Any], str]] = [
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}, IMAGE),
    ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}, IMAGE),
    ({"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "high"}, IMAGE),
    ({"image": "a.png"}, IMAGE),
    ({"type": "video_url", "video_url": {"url": "file.mp4"}}, VIDEO),
    ({"type": "video", "video": ["f0.png"]}, VIDEO),
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("role", list(SAID))
@pytest.mark.parametrize(("part", "placeholder"), MEDIA, ids=range(len(MEDIA)))
def test_media_in_every_role(template: str, role: Any, part: dict[str, Any], placeholder: str) -> None:
    for lead in ((), (Message("user", "u"),)):
        content = [{"type": "text", "text": " see "}, part, {"type": "text", "text": " end\n"}]
        request = ChatRequest((*lead, Message(role, content), Message("user", "go")))
        prompt = chat_format(template).render(request)
        assert f"see {placeholder} end" in prompt.text
        assert prompt.media == (part,)
        pad = chat_format().tokenizer.control_id(placeholder.split("><")[1].join("<>"))
        assert prompt.token_ids.count(pad) == 1


@pytest.mark.parametrize("part", [{"type": "input_audio", "input_audio": {}}, {"type": "file"}, 7])
def test_unreadable_parts_are_refused_by_name(part: Any) -> None:
    with pytest.raises(UsageError, match="allowed are text, image and video"):
        render(ChatRequest((Message("user", [part]),)))


def test_unknown_role_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="unknown role 'narrator', allowed are system, developer"):
        render(ChatRequest((Message("narrator", "x"),)))  # type: ignore[arg-type]


@needs_official
@pytest.mark.parametrize(
    "content",
    [
        "<think>\nplan\n</think>\n\nanswer",
        "plan</think>answer",
        "\n</think>\n\nanswer",
        "a<think>b</think>c</think> d ",
        "<think>never closed",
        "no tags",
    ],
)
@pytest.mark.parametrize("reasoning", [None, "", "given"])
@pytest.mark.parametrize("preserve", [True, False])
def test_reasoning_inside_content_is_split_as_the_official_template_does(
    content: str, reasoning: str | None, preserve: bool
) -> None:
    assert OFFICIAL is not None
    messages = (Message("user", "q"), Message("assistant", content, reasoning), Message("user", "next"))
    request = ChatRequest(messages, preserve_thinking=preserve)
    assert render(request, OFFICIAL) == run_template(OFFICIAL, variables_of(request))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("position", [0, 2, 3])
def test_user_text_in_a_tool_results_wrapping_is_no_question(template: str, position: int) -> None:
    wrapped = Message("user", " <tool_response>\n42\n</tool_response>\n")
    messages = [Message("user", "q"), Message("assistant", "a", "because"), Message("assistant", "b", "so")]
    messages.insert(position, wrapped)
    request = ChatRequest((*messages, Message("tool", "t")), preserve_thinking=False)
    assert render(request, template) == run_template(template, variables_of(request))
    assert render(request, template).count("because") == 1


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("last", "thinking", "end", "in_reasoning"),
    [
        (Message("assistant", "The answer is "), True, "</think>\n\nThe answer is", False),
        (Message("assistant", "The answer is", "hm"), False, "<think>\nhm\n</think>\n\nThe answer is", False),
        (Message("assistant", "", "because "), True, "assistant\n<think>\nbecause", True),
        (Message("assistant", None, "because"), False, "<think>\nbecause\n</think>\n\n", False),
        (Message("assistant", ""), True, "q<|im_end|>\n<|im_start|>assistant\n<think>\n", True),
        (Message("assistant", None, ""), False, "q<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        (
            Message("assistant", "x", "", (PARIS,)),
            True,
            "</tool_call><|im_end|>\n<|im_start|>assistant\n<think>\n",
            True,
        ),
    ],
)
def test_last_assistant_message_is_continued(
    template: str, last: Message, thinking: bool, end: str, in_reasoning: bool
) -> None:
    request = ChatRequest((Message("user", "q"), last), enable_thinking=thinking)
    prompt = chat_format(template).render(request)
    assert prompt.text.endswith(end)
    assert prompt.starts_in_reasoning is in_reasoning
    assert chat_format(template).parser(request).in_reasoning is in_reasoning


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize("thinking", [True, False])
def test_sampled_tokens_of_a_turn_are_used_as_they_are(template: str, ended: bool, thinking: bool) -> None:
    chat = chat_format(template)
    first = ChatRequest((Message("user", "q"),), enable_thinking=thinking)
    prompt = chat.render(first)
    # Single bytes: no tokenizer would cut the text like this.
    odd = [
        token
        for char in ("r\n</think>\n\nan  swer" if thinking else "an  swer")
        for token in chat.tokenizer.encode(char)
    ]
    sampled = (*odd, *((chat.tokenizer.eos_token_ids[0],) if ended else ()))
    answer = Message("assistant", "answer", "r" if thinking else None, token_ids=sampled)
    follow = chat.render(replace(first, messages=(*first.messages, answer, Message("user", "next"))))
    assert follow.token_ids[: len(prompt.token_ids) + len(odd)] == prompt.token_ids + tuple(odd)
    rest = follow.token_ids[len(prompt.token_ids) + len(odd) :]
    assert chat.tokenizer.decode(rest).startswith("<|im_end|>\n<|im_start|>user\nnext<|im_end|>\n")
    continued = chat.render(replace(first, messages=(*first.messages, answer)))
    assert continued.token_ids == prompt.token_ids + tuple(odd)


@pytest.mark.parametrize("template", TEMPLATES)
def test_sampled_tokens_are_not_used_where_reasoning_is_dropped(template: str) -> None:
    answer = Message("assistant", "answer", "secret", token_ids=(1, 2, 3))
    request = ChatRequest((Message("user", "q"), answer, Message("user", "n")), preserve_thinking=False)
    assert "<|im_start|>assistant\nanswer<|im_end|>" in chat_format(template).render(request).text


@pytest.mark.parametrize("template", TEMPLATES)
def test_turn_starts(template: str) -> None:
    prompt = chat_format(template).render(ChatRequest((Message("system", "s"), *V4), (WEATHER,)))
    start = chat_format().tokenizer.control_id("<|im_start|>")
    assert [prompt.token_ids[i] for i in prompt.turn_starts] == [start] * 7
    assert prompt.turn_starts[0] == 0


@pytest.mark.parametrize("body", ["{{ messages[0].content[:9] }}", "{{ messages[0].content[9:] }}"])
def test_a_template_that_takes_texts_apart_is_refused(body: str) -> None:
    with pytest.raises(TemplateError, match="took a text apart"):
        render(ChatRequest((Message("user", "hello hello hello"),)), body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", "before a user text"),
        ("{% for m in messages %}user {{ m.content }}{% endfor %}", "late"),
        ("{% for m in messages %}user {{ m.content[15:] }}{% endfor %}", "changed a user text"),
    ],
)
def test_a_late_system_turn_needs_a_template_that_names_the_role(body: str, message: str) -> None:
    request = ChatRequest((Message("user", "u"), Message("system", "late")))
    if message == "late":
        assert render(request, body) == "user usystem late"
    else:
        with pytest.raises(TemplateError, match=message):
            render(request, body)


def test_templates_are_found_in_both_places(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="has no chat template"):
        ChatTemplate.from_directory(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "A"}]}))
    assert ChatTemplate.from_directory(tmp_path).render(normalise(ChatRequest(())))[0].text == "A"
    config.write_text(json.dumps({"chat_template": "B"}))
    assert ChatTemplate.from_directory(tmp_path).render(normalise(ChatRequest(())))[0].text == "B"
    (tmp_path / "chat_template.jinja").write_text("C")
    assert ChatTemplate.from_directory(tmp_path).render(normalise(ChatRequest(())))[0].text == "C"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate.from_directory(tmp_path)


SAMPLES = shared_directory("clients/samples")


@pytest.mark.skipif(
    SAMPLES is None, reason="the clients' recorded requests are not in the repository and not beside it"
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_recorded_requests_of_clients_render(template: str) -> None:
    assert SAMPLES is not None
    chat = chat_format(template)
    rendered = 0
    for path in sorted(SAMPLES.glob("*.json")):
        sample = json.loads(path.read_text())
        body = sample["body"]
        if not sample["path"].split("?")[0].endswith("/chat/completions"):
            continue
        messages = []
        for message in body["messages"]:
            calls = tuple(
                ToolCall(call["function"]["name"], call["function"]["arguments"], call["id"])
                for call in message.get("tool_calls") or ()
            )
            reasoning = message.get("reasoning_content") or message.get("reasoning")
            messages.append(Message(message["role"], message.get("content"), reasoning, calls))
        prompt = chat.render(ChatRequest(tuple(messages)))
        assert len(prompt.turn_starts) >= 2, path.name
        rendered += 1
    assert rendered >= 10
