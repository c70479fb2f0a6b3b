"""The stream parser: what it emits and when, by ids and by text; nothing makes it crash, hang or fall silent."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.chat.messages import (
    ChatEvent,
    ChatRequest,
    End,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallArgumentsDelta,
    ToolCallEnd,
    ToolCallError,
    ToolCallStart,
)
from sterna.chat.stream_parser import StreamParser
from sterna.types import FinishReason, Usage
from support.chat import EDIT, OWN_TEMPLATE, WEATHER, chat_format, official_template, tiny_tokenizer

TOOLS = (WEATHER, EDIT)
STOP = FinishReason.STOP


def make(*, thinking: bool = True, finish: FinishReason = STOP) -> StreamParser:
    counter = itertools.count()
    return StreamParser(
        tools=TOOLS,
        enable_thinking=thinking,
        tokenizer=tiny_tokenizer(),
        new_call_id=lambda: f"call_{next(counter)}",
    )


def by_text(pieces: Iterable[str], *, thinking: bool = True, finish: FinishReason = STOP) -> list[ChatEvent]:
    parser = make(thinking=thinking)
    events = [event for piece in pieces for event in parser.feed_text(piece)]
    return events + parser.finish(finish)


def by_ids(ids: Iterable[int], *, thinking: bool = True, finish: FinishReason = STOP) -> list[ChatEvent]:
    parser = make(thinking=thinking)
    events = [event for token_id in ids for event in parser.feed(token_id)]
    return events + parser.finish(finish)


def merged(events: Sequence[ChatEvent]) -> list[ChatEvent]:
    """The events with neighbouring deltas joined and without token ids, so that two ways of cutting compare equal."""
    out: list[ChatEvent] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            out[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            out[-1] = ReasoningDelta(last.text + event.text)
        elif (
            isinstance(event, ToolCallArgumentsDelta)
            and isinstance(last, ToolCallArgumentsDelta)
            and last.index == event.index
        ):
            out[-1] = ToolCallArgumentsDelta(event.index, last.json + event.json)
        elif isinstance(event, End):
            message = event.message
            plain = Message("assistant", message.content, message.reasoning, message.tool_calls)
            out.append(End(event.finish_reason, plain))
        else:
            out.append(event)
    return out


def check_consistent(events: Sequence[ChatEvent]) -> Message:
    """What holds for every answer whatsoever; returns the final message."""
    end = events[-1]
    assert isinstance(end, End) and not any(isinstance(event, End) for event in events[:-1])
    message = end.message
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == message.content
    assert "".join(e.text for e in events if isinstance(e, ReasoningDelta)) == (message.reasoning or "")
    pieces: dict[int, str] = {}
    started: set[int] = set()
    finished: dict[int, str] = {}
    for event in events:
        if isinstance(event, ToolCallStart):
            started.add(event.index)
        elif isinstance(event, ToolCallArgumentsDelta):
            assert event.json and event.index in started and event.index not in finished
            pieces[event.index] = pieces.get(event.index, "") + event.json
        elif isinstance(event, ToolCallEnd | ToolCallError):
            assert event.index not in finished
            finished[event.index] = type(event).__name__
            if isinstance(event, ToolCallEnd):
                assert json.loads(pieces[event.index]) == event.call.arguments
            else:
                assert event.message and event.raw.startswith("<tool_call>") and event.id
    assert list(finished) == list(range(len(finished)))
    assert started <= set(finished)
    for text in pieces.values():
        assert isinstance(json.loads(text), dict)
    assert [call.id for call in message.tool_calls] == list(dict.fromkeys(call.id for call in message.tool_calls))
    return message


OPEN, CLOSE = "<tool_call>\n<function=edit>\n", "</function>\n</tool_call>"
CALL = f"{OPEN}<parameter=path>\na.py\n</parameter>\n<parameter=line>\n3\n</parameter>\n{CLOSE}"
GOOD = f"Let me see.\n</think>\n\nI edit.\n\n{CALL}\n{CALL.replace('a.py', 'b.py')}"


def test_a_whole_turn() -> None:
    events = by_text([GOOD])
    assert events == [
        ReasoningDelta("Let me see."),
        TextDelta("I edit."),
        ToolCallStart(0, "call_0", "edit"),
        ToolCallArgumentsDelta(0, '{"path": "a.py", "line": 3}'),
        ToolCallEnd(0, ToolCall("edit", {"path": "a.py", "line": 3}, "call_0")),
        ToolCallStart(1, "call_1", "edit"),
        ToolCallArgumentsDelta(1, '{"path": "b.py", "line": 3}'),
        ToolCallEnd(1, ToolCall("edit", {"path": "b.py", "line": 3}, "call_1")),
        End(
            FinishReason.TOOL_CALLS,
            Message(
                "assistant",
                "I edit.",
                "Let me see.",
                (
                    ToolCall("edit", {"path": "a.py", "line": 3}, "call_0"),
                    ToolCall("edit", {"path": "b.py", "line": 3}, "call_1"),
                ),
            ),
        ),
    ]


SAMPLES = [
    GOOD,
    "no reasoning end",
    "a</think>b",
    "</think>\n\n  text with < and </ and <tool and é😀毕 \n\n ",
    f"thinking {CALL}",
    f"x</think>{CALL}\n\nafterwards",
    f"x</think>{OPEN}<parameter=path>\nif a </parameter> b:\n</parameters>\n</parameter\n\n</parameter>\n{CLOSE}",
    "x</think><tool_call>{}</tool_call>rest<tool_call>\n<function=nope>\n</function>\n</tool_call>",
    "<think>\nopened again</think><think>more</think>text</think></tool_call>",
    f"x</think>{OPEN}<parameter=text>\n</function>\n<tool_call></tool_call><think>\n</parameter>\n{CLOSE}",
    f"x</think>{OPEN}<parameter=path>\na\n</parameter>{' ' * 70}</function>\n{CALL}",
    f"x</think>{OPEN}<parameter=path>\na\n</parameter>\n</function>{' ' * 70}</tool_call>\n",
    "x</think><tool_call>\n<function=edit>\n<parameter=path>\nunfinished 😀 \n</param",
    f'x</think>{OPEN}<parameter=tags>\n["a", "é"]\n</parameter>\n<parameter=path>\n\n\n</parameter>\n\n{CLOSE}',
]


@pytest.mark.parametrize("text", SAMPLES, ids=range(len(SAMPLES)))
@pytest.mark.parametrize("thinking", [True, False])
def test_every_split_gives_the_same(text: str, thinking: bool) -> None:
    expected = merged(by_text([text], thinking=thinking))
    check_consistent(expected)
    assert merged(by_text(text, thinking=thinking)) == expected
    for cut in range(len(text)):
        assert merged(by_text([text[:cut], text[cut:]], thinking=thinking)) == expected, cut


@pytest.mark.parametrize("text", SAMPLES, ids=range(len(SAMPLES)))
@pytest.mark.parametrize("thinking", [True, False])
def test_ids_give_the_same_as_text_however_text_was_cut_into_tokens(text: str, thinking: bool) -> None:
    tokenizer = tiny_tokenizer()
    single = {tokenizer.token_bytes(i): i for i in range(600) if len(tokenizer.token_bytes(i)) == 1}
    expected = merged(by_text([text], thinking=thinking))
    ids = tokenizer.encode_control(text)
    bytewise = []
    for piece, token_id in tokenizer.split_control(text):
        bytewise += [single[bytes([b])] for b in piece.encode()] if token_id is None else [token_id]
    for tokens in (ids, bytewise):
        events = by_ids(tokens, thinking=thinking)
        check_consistent(events)
        assert merged(events) == expected
        end = events[-1]
        assert isinstance(end, End) and end.message.token_ids == tuple(tokens)


def test_text_fed_byte_by_byte() -> None:
    decode = codecs.getincrementaldecoder("utf-8")().decode
    assert merged(by_text(decode(bytes([byte])) for byte in SAMPLES[3].encode())) == merged(by_text([SAMPLES[3]]))


def test_markers_spelled_in_ordinary_tokens_are_text_by_ids() -> None:
    ids = tiny_tokenizer().encode("a</think><tool_call>")
    assert merged(by_ids(ids)) == [
        ReasoningDelta("a</think><tool_call>"),
        End(STOP, Message("assistant", "", "a</think><tool_call>")),
    ]


def test_string_values_are_passed_on_before_their_end() -> None:
    parser = make()
    parser.feed_text("</think><tool_call>\n<function=edit>\n<parameter=text>\n")
    seen = ""
    for line in range(50):
        events = parser.feed_text(f'line {line} "quoted" <b>\n')
        seen += "".join(event.json for event in events if isinstance(event, ToolCallArgumentsDelta))
        # All but the newline, which may be the one before the closing tag.
        assert seen.endswith(f'line {line} \\"quoted\\" <b>')


def test_other_values_are_passed_on_as_soon_as_they_are_complete() -> None:
    parser = make()
    parser.feed_text("</think><tool_call>\n<function=edit>\n<parameter=line>\n4")
    assert parser.feed_text("2\n") == []
    assert parser.feed_text("</parameter>\n<parameter=text>") == [ToolCallArgumentsDelta(0, '42, "text": "')]


def test_text_waits_only_for_white_space_and_possible_markers() -> None:
    parser = make(thinking=False)
    assert parser.feed_text("  Hello ") == [TextDelta("Hello")]
    assert parser.feed_text("<") == []
    assert parser.feed_text("b>") == [TextDelta(" <b>")]
    assert parser.finish(STOP) == [End(STOP, Message("assistant", "Hello <b>"))]


def test_end_tokens_say_nothing_and_reasoning_is_counted() -> None:
    tokenizer = tiny_tokenizer()
    ids = [
        *tokenizer.encode("hm hm"),
        tokenizer.control_id("</think>"),
        *tokenizer.encode("yes"),
        tokenizer.eos_token_ids[0],
    ]
    parser = make()
    for token_id in ids:
        parser.feed(token_id)
    (end,) = parser.finish(STOP, Usage(prompt_tokens=5, completion_tokens=len(ids)))
    assert isinstance(end, End)
    assert end.message == Message("assistant", "yes", "hm hm", token_ids=tuple(ids))
    assert end.usage == Usage(5, len(ids), reasoning_tokens=len(tokenizer.encode("hm hm")) + 1)


@pytest.mark.parametrize(("thinking", "reasoning"), [(True, ""), (False, None)])
def test_reasoning_is_none_only_without_thinking(thinking: bool, reasoning: str | None) -> None:
    text = "</think>\n\nhi" if thinking else "hi"
    assert check_consistent(by_text([text], thinking=thinking)).reasoning == reasoning


def call(body: str) -> str:
    return f"</think>\n\n<tool_call>\n<function=edit>\n{body}</function>\n</tool_call>"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "\n",
        "a",
        "\n\na\n\n",
        "  spaces  ",
        "</parameter>",
        "x </parameter> y",
        "\n</parameter>\ntext",
        "</parameter>\n</function>\nmore",
        "</parameter>" + " " * 100 + "<parameter=x>",
        "</parameter>\n<parameter=",
        "</parameter>\n<parameter=<>",
        "<parameter=path>",
        "<function=edit>",
        "</function>\n</tool_call>",
        "<tool_call>\n<function=edit>\n</function>\n</tool_call>",
        "<think>\n</think>",
        "< </ <p </para </parameter",
        'quotes " and \\ and \t and \x00 and é 😀',
        "\r\n",
    ],
)
def test_any_value_comes_through_unchanged(value: str) -> None:
    text = call(f"<parameter=text>\n{value}\n</parameter>\n<parameter=path>\np\n</parameter>\n")
    for pieces in ([text], text):
        message = check_consistent(by_text(pieces))
        assert [dict(c.arguments) for c in message.tool_calls] == [{"text": value, "path": "p"}]
        assert message.content == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<tool_call>\n{"name": "edit"}\n</tool_call>', "not followed by <function=NAME>; a call has the form"),
        ("<tool_call></tool_call>", "not followed by <function=NAME>"),
        ("<tool_call>\n<function=>\n</function>\n</tool_call>", "not followed by <function=NAME>"),
        ("<tool_call>\n<function=edit>\nhello\n</function>\n</tool_call>", "tool 'edit': expected <parameter=KEY> or"),
        ("<tool_call>\n<function=edit>\n</tool_call>", "tool 'edit': expected <parameter=KEY> or"),
        (
            "<tool_call>\n<function=edit>\n<parameter=path>\na\n</parameter>\n</tool_call>",
            "tool 'edit': expected <parameter=KEY> or </function>",
        ),
        ("<tool_call>\n<function=edit>\n</function>\ntext</tool_call>", "</function> is not followed by </tool_call>"),
        ("<tool_call>\n<function=ed", "the answer ended before </tool_call>"),
        ("<tool_call>", "the answer ended before </tool_call>"),
        ("<tool_call>\n<function=edit>\n<parameter=path>\na", "the answer ended before </tool_call>"),
        ("<tool_call>\n<function=edit>\n<parameter=path>\na\n</parameter>\n</function>", "the answer ended before"),
        (
            "<tool_call>\n<function=nope>\n</function>\n</tool_call>",
            "unknown tool 'nope', allowed are get_weather, edit",
        ),
        (
            "<tool_call>\n<function=edit>\n</function>\n</tool_call>",
            "tool 'edit': required parameter 'path' is missing",
        ),
        (
            "<tool_call>\n<function=edit>\n<parameter=path>\na\n</parameter>\n<parameter=line>\nten\n</parameter>\n"
            "</function>\n</tool_call>",
            "tool 'edit': parameter 'line' is 'ten', expected an integer",
        ),
        (
            "<tool_call>\n<function=edit>\n<parameter=path>\na\n</parameter>\n<parameter=path>\nb\n</parameter>\n"
            "</function>\n</tool_call>",
            "parameter 'path' is given twice",
        ),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_malformed_calls_are_repairable_errors(text: str, message: str, whole: bool) -> None:
    full = "hm</think>\n\nI call.\n\n" + text
    events = by_text([full] if whole else full)
    final = check_consistent(events)
    (error,) = [event for event in events if isinstance(event, ToolCallError)]
    assert message in error.message
    assert error.raw == text
    assert not any(isinstance(event, ToolCallEnd) for event in events)
    assert final.content == "I call."


def test_a_cut_call_says_that_it_was_cut() -> None:
    events = by_text(["</think><tool_call>\n<function=edit>"], finish=FinishReason.LENGTH)
    assert isinstance(events[-2], ToolCallError)
    assert "reached its token limit" in events[-2].message
    assert isinstance(events[-1], End) and events[-1].finish_reason is FinishReason.LENGTH


def test_a_good_call_after_a_bad_one_is_a_call() -> None:
    for bad in ("<tool_call>nonsense</tool_call>", "<tool_call>nonsense "):
        events = by_text([f"</think>{bad}{CALL}"])
        check_consistent(events)
        kinds = [type(event).__name__ for event in events]
        assert kinds == ["ToolCallError", "ToolCallStart", "ToolCallArgumentsDelta", "ToolCallEnd", "End"]


def test_calls_that_fail_their_schema_stay_in_the_message() -> None:
    message = check_consistent(by_text([call("<parameter=line>\nten\n</parameter>\n")]))
    assert [dict(c.arguments) for c in message.tool_calls] == [{"line": "ten"}]


def test_text_after_a_call_is_separated() -> None:
    assert check_consistent(by_text([f"</think>before\n\n{CALL}\nafter"])).content == "before\n\nafter"


def test_a_continued_message_is_completed() -> None:
    chat = chat_format()
    prefill = ChatRequest((Message("user", "q"), Message("assistant", "The answer", "hm")))
    parser = chat.parser(prefill)
    assert parser.feed_text(" is 4") == [TextDelta(" is 4")]
    (end,) = parser.finish(STOP)
    assert isinstance(end, End) and end.message == Message("assistant", "The answer is 4", "hm")
    parser = chat.parser(ChatRequest((Message("user", "q"), Message("assistant", None, "I think"))))
    assert parser.feed_text(" so</think>\n\nYes") == [ReasoningDelta(" so"), TextDelta("Yes")]
    (end,) = parser.finish(STOP)
    assert isinstance(end, End) and end.message == Message("assistant", "Yes", "I think so")


OFFICIAL = official_template()
TEMPLATES = [
    pytest.param(OWN_TEMPLATE, id="own"),
    pytest.param(
        OFFICIAL,
        id="official",
        marks=pytest.mark.skipif(
            OFFICIAL is None, reason="the official template is not in the repository or beside it"
        ),
    ),
]
WORD = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LINES = st.lists(st.one_of(WORD, st.sampled_from(["\n", "</parameter>", "<b>", "</", "<think>"])), max_size=5).map(
    "".join
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "path": LINES,
    "text": LINES,
    "line": st.integers(-(10**6), 10**6),
    "ratio": st.floats(-1e6, 1e6),
    "force": st.booleans(),
    "tags": st.lists(WORD, max_size=3),
    "options": st.dictionaries(WORD, st.one_of(st.integers(), WORD, st.none()), max_size=3),
    "note": st.none(),
}
ARGUMENTS = st.fixed_dictionaries({"path": LINES}, optional={k: v for k, v in VALUES.items() if k != "path"})
PROSE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=30).map(str.strip)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(st.booleans(), PROSE, PROSE, st.lists(ARGUMENTS, max_size=3))
def test_round_trip(
    template: str, thinking: bool, reasoning: str, content: str, arguments: list[dict[str, Any]]
) -> None:
    """Template -> generated text -> parser -> message -> template gives the same text and the same tokens."""
    chat = chat_format(template)
    calls = tuple(ToolCall("edit", argument) for argument in arguments)
    answer = Message("assistant", content, reasoning if thinking else None, calls)
    question = ChatRequest((Message("user", "q"),), TOOLS, enable_thinking=thinking)
    follow = (Message("user", "next"),)
    prompt = chat.render(question)
    full = chat.render(ChatRequest((*question.messages, answer, *follow), TOOLS, enable_thinking=thinking))
    generated = full.text.removeprefix(prompt.text)
    assert len(generated) < len(full.text)
    generated = generated[: generated.rfind("<|im_end|>\n<|im_start|>user\nnext")]
    parser = chat.parser(question)
    message = check_consistent([*parser.feed_text(generated), *parser.finish(STOP)])
    assert [dict(c.arguments) for c in message.tool_calls] == arguments
    assert (message.content, message.reasoning or "") == (content, reasoning if thinking else "")
    again = chat.render(ChatRequest((*question.messages, message, *follow), TOOLS, enable_thinking=thinking))
    assert again == full


FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=edit>", "<function=", "</function>",
                "<parameter=path>", "<parameter=line>", "<parameter=", "</parameter>", "\n", " ", "<", ">", "3", "[1]",
                '"', "\\", "é", "😀", "\ud800", "<|im_end|>", "true", CALL,
            ]
        ),
        st.text(max_size=5),
    ),
    max_size=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(FRAGMENTS, st.booleans(), st.data())
def test_no_text_crashes_it_and_no_cut_changes_it(fragments: list[str], thinking: bool, data: st.DataObject) -> None:
    text = "".join(fragments)
    whole = by_text([text], thinking=thinking)
    check_consistent(whole)
    assert merged(by_text(fragments, thinking=thinking)) == merged(whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert merged(by_text(pieces, thinking=thinking)) == merged(whole)


@settings(max_examples=150, deadline=None)
@given(FRAGMENTS, st.booleans())
def test_ids_give_the_same_as_text(fragments: list[str], thinking: bool) -> None:
    tokenizer = tiny_tokenizer()
    text = "".join(fragments).encode(errors="replace").decode()
    eos = {tokenizer.control_literals[i] for i in tokenizer.eos_token_ids}
    for literal in eos:
        text = text.replace(literal, "")
    ids = tokenizer.encode_control(text)
    events = by_ids(ids, thinking=thinking)
    check_consistent(events)
    assert merged(events) == merged(by_text([tokenizer.decode(ids)], thinking=thinking))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=60), st.booleans())
def test_no_tokens_crash_it(ids: list[int], thinking: bool) -> None:
    check_consistent(by_ids(ids, thinking=thinking))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 20_000,
        "</think>" + "<" * 100_000,
        call("<parameter=text>\n" + "</parameter>\n" * 20_000 + "</parameter>\n"),
        call("<parameter=text>\n" + "\n" * 200_000 + "</parameter>\n"),
        "</think><tool_call>\n<function=" + "x" * 200_000,
        "</think><tool_call>" + " " * 200_000,
        "</think>" + " " * 200_000 + "x",
        call("<parameter=options>\n" + '{"a":' * 20_000 + "\n</parameter>\n"),
    ],
    ids=range(8),
)
def test_long_input_takes_linear_time(text: str) -> None:
    """Quadratic work on these would take minutes."""
    check_consistent(by_text([text]))
    check_consistent(by_text(text[i : i + 5] for i in range(0, len(text), 5)))
