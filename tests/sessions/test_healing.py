"""What clients do to a history, one by one: continued from the sampled tokens where the turn says the same, else branched.

Every case renders the second request and compares its prompt with what was in the cache: first prompt and sampled tokens.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.chat.messages import ChatRequest, End, Message, Tool, ToolCall
from sterna.errors import UsageError
from sterna.sessions.healing import Healer
from sterna.sessions.same_turn import is_same_turn
from sterna.sessions.turn_log import MAX_SIBLINGS, TurnLog
from sterna.types import FinishReason
from support.chat import chat_format

EDIT = Tool(
    "edit_file",
    "Change a file",
    {
        "type": "object",
        "properties": {
            "file": {"type": "string"},
            "lines": {"type": "array", "items": {"type": "integer"}},
            "everywhere": {"type": "boolean", "default": False},
            "note": {"type": "string"},
        },
        "required": ["file", "lines"],
    },
)
USER = Message("user", "repair the parser")
RESULT = Message("tool", "done", tool_call_id="call_1")
THOUGHT = "\n First I look  at the file.\n\n"
# outer white space, and numbers spelled as no JSON printer would spell them
CALL = (
    "<tool_call>\n<function=edit_file>\n<parameter=file>\na.py\n</parameter>\n<parameter=lines>\n[1,2,   3]\n</parameter>\n"
    "</function>\n</tool_call>"
)
FORMAT = chat_format()


def sampled(text: str, *, tools=(EDIT,), call_id="call_1") -> tuple[ChatRequest, tuple[int, ...], Message]:
    """A first request, the tokens of its prompt, and the answer as the parser gives it."""
    request = ChatRequest((Message("system", "You edit."), USER), tools)
    ids = []
    for i, piece in enumerate(text.split("|")):
        # single characters are tokens too: a split that no tokenizer would choose
        ids += [t for c in piece for t in FORMAT.tokenizer.encode(c)] if i % 2 else encode_markup(piece)
    ids.append(FORMAT.tokenizer.control_id("<|im_end|>"))
    parser = FORMAT.parser(request)
    parser._new_call_id = lambda: call_id
    for token in ids:
        parser.feed(token)
    end = parser.finish(FinishReason.STOP)[-1]
    assert isinstance(end, End)
    return request, FORMAT.render(request).token_ids, end.message


def encode_markup(text: str) -> list[int]:
    """Token ids with markers as control tokens."""
    ids = []
    for piece, token in FORMAT.tokenizer.split_control(text):
        ids += FORMAT.tokenizer.encode(piece) if token is None else [token]
    return ids


TURN = f"|{THOUGHT}|</think>\n\n  \nI change it. \n\n{CALL}"
SILENT = f"|{THOUGHT}|</think>\n\n{CALL}"
TALK = f"|{THOUGHT}|</think>\n\n  It is fine. \n"


def second_prompt(text, mutate, *, level="reasoning", tools=(EDIT,), namespaces=("", ""), preserve=True, tail=None):
    """(whether all that was cached is a prefix of the next prompt, healed turns) after ``mutate`` changed the history."""
    healer = Healer(TurnLog(), level)
    request, prompt, answer = sampled(text, tools=tools)
    first = healer.heal(request, namespace=namespaces[0])
    healer.remember(first, answer, namespace=namespaces[0])
    sent = replace(answer, token_ids=None)
    history = mutate(sent)
    tail = tail if tail is not None else ((RESULT,) if answer.tool_calls else (Message("user", "thanks, go on"),))
    history = history if isinstance(history, tuple) else (history,)
    again = replace(request, messages=(*request.messages, *history, *tail), preserve_thinking=preserve)
    healed = healer.heal(again, namespace=namespaces[1])
    ids = FORMAT.render(healed.request).token_ids
    known = (*prompt, *answer.token_ids[:-1])
    return ids[: len(known)] == known, healed.turns


def with_call(message, **arguments):
    return replace(message, tool_calls=(replace(message.tool_calls[0], arguments=arguments),))


SAME = {
    "as it was": (TURN, lambda m: m),
    "reasoning dropped": (TURN, lambda m: replace(m, reasoning=None)),
    "reasoning emptied": (TURN, lambda m: replace(m, reasoning="")),
    "reasoning trimmed": (TURN, lambda m: replace(m, reasoning=m.reasoning.strip())),
    "reasoning with white space around": (TURN, lambda m: replace(m, reasoning=f"\n{m.reasoning}\n\n")),
    "reasoning inside the text": (
        TURN, lambda m: replace(m, reasoning=None, content=f"<think>\n{m.reasoning}\n</think>\n\n{m.content}"),
    ),
    "reasoning as an answer of its own": (
        TURN, lambda m: (Message("assistant", m.reasoning), replace(m, reasoning=None)),
    ),
    "only the closing tag left": (SILENT, lambda m: replace(m, reasoning=None, content="\n</think>")),
    "newline before the text": (TURN, lambda m: replace(m, content="\n" + m.content)),
    "newline before no text": (SILENT, lambda m: replace(m, content="\n")),
    "blank text beside calls": (SILENT, lambda m: replace(m, content="\n\n")),
    "no text beside calls": (SILENT, lambda m: replace(m, content=None)),
    "text as parts": (TURN, lambda m: replace(m, content=[{"type": "text", "text": m.content}])),
    "filler instead of no text": (SILENT, lambda m: replace(m, content="[Note: there was no text here]")),
    "arguments printed anew": (TURN, lambda m: with_call(m, file="a.py", lines=[1, 2, 3])),
    "arguments in another order": (TURN, lambda m: with_call(m, lines=[1, 2, 3], file="a.py")),
    "default written out, in front": (TURN, lambda m: with_call(m, everywhere=False, file="a.py", lines=[1, 2, 3])),
    "null written out": (TURN, lambda m: with_call(m, file="a.py", lines=[1, 2, 3], note=None)),
    "whole numbers as floats": (TURN, lambda m: with_call(m, file="a.py", lines=[1.0, 2.0, 3.0])),
    "id of the call lost": (TURN, lambda m: replace(m, tool_calls=(replace(m.tool_calls[0], id=""),))),
    "talk, reasoning dropped": (TALK, lambda m: replace(m, reasoning=None)),
    "talk, white space around": (TALK, lambda m: replace(m, content=f"\n{m.content}  ")),
    "everything at once": (
        SILENT, lambda m: replace(with_call(m, everywhere=False, lines=[1, 2, 3], file="a.py"), content="\n", reasoning=None),
    ),
}  # fmt: skip

DIFFERENT = {
    "other text": (TURN, lambda m: replace(m, content="I changed my mind.")),
    "white space inside the text": (TURN, lambda m: replace(m, content="I  change it.")),
    "other reasoning": (TURN, lambda m: replace(m, reasoning="I guess.")),
    "other value": (TURN, lambda m: with_call(m, file="b.py", lines=[1, 2, 3])),
    "true for 1": (TURN, lambda m: with_call(m, file="a.py", lines=[True, 2, 3])),
    "argument added": (TURN, lambda m: with_call(m, file="a.py", lines=[1, 2, 3], everywhere=True)),
    "argument removed": (TURN, lambda m: with_call(m, file="a.py")),
    "call removed": (TURN, lambda m: replace(m, tool_calls=())),
    "call added": (TURN, lambda m: replace(m, tool_calls=(*m.tool_calls, ToolCall("edit_file", {}, "call_9")))),
    "other tool": (TURN, lambda m: replace(m, tool_calls=(replace(m.tool_calls[0], name="run"),))),
    "text where there was none": (SILENT, lambda m: replace(m, content="I change it.")),
    "brackets in place of a text": (TURN, lambda m: replace(m, content="[nothing]")),
    "an image": (TURN, lambda m: replace(m, content=[{"type": "image", "image": "x"}])),
    "other answer in front": (TURN, lambda m: (Message("assistant", "hm"), replace(m, reasoning=None, tool_calls=()))),
}

# what the server had sent already was trimmed and parsed, so these clients changed nothing that they were given
GIVEN_SO = {
    "as it was", "reasoning trimmed", "no text beside calls", "arguments printed anew", "id of the call lost",
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_turn_is_continued(name):
    text, mutate = SAME[name]
    continued, healed = second_prompt(text, mutate)
    assert continued
    assert healed == (name not in GIVEN_SO)


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_turn_branches(name):
    text, mutate = DIFFERENT[name]
    continued, healed = second_prompt(text, mutate)
    assert not continued
    assert healed == 0


def test_without_healing_a_history_is_what_the_client_sends():
    assert second_prompt(TURN, lambda m: m, level="off") == (False, 0)


def test_format_leaves_dropped_reasoning_dropped():
    assert second_prompt(TURN, lambda m: replace(m, reasoning=None), level="format") == (False, 0)
    assert second_prompt(TURN, lambda m: replace(m, content=f" {m.content}"), level="format") == (True, 1)


def test_keys_do_not_heal_each_other():
    assert second_prompt(TURN, lambda m: m, namespaces=("a", "b")) == (False, 0)


def test_stripping_asked_for_is_not_undone():
    dropped = lambda m: replace(m, reasoning=None)
    assert second_prompt(TALK, dropped, preserve=False) == (False, 0)
    assert second_prompt(TURN, dropped, preserve=False) == (True, 1)


def test_an_answer_to_be_continued_is_not_touched():
    continued, healed = second_prompt(TALK, lambda m: replace(m, reasoning=None), tail=())
    assert (continued, healed) == (False, 0)


def test_of_several_answers_the_one_that_was_kept_is_found():
    healer = Healer(TurnLog())
    for i in range(MAX_SIBLINGS + 3):
        request, prompt, answer = sampled(f"|thought {i}|</think>\n\n answer {i % 4} ")
        healer.remember(healer.heal(request), answer)
    message = Message("assistant", "answer 0")
    healed = healer.heal(replace(request, messages=(*request.messages, message, Message("user", "go on"))))
    assert healed.request.messages[2].reasoning == "thought 8"
    assert FORMAT.render(healed.request).token_ids[: len(prompt)] == prompt
    assert len(healer.log) == MAX_SIBLINGS


def test_a_later_turn_is_found_behind_a_healed_one():
    healer = Healer(TurnLog())
    request, _, first = sampled(TURN)
    healer.remember(healer.heal(request), first)
    request = replace(request, messages=(*request.messages, first, RESULT))
    _, _, second = sampled(TALK)
    healer.remember(healer.heal(request), second)
    sent = [replace(turn, token_ids=None, reasoning=None) for turn in (first, second)]
    sent[0] = with_call(sent[0], everywhere=False, file="a.py", lines=[1, 2, 3])
    third = (*request.messages[:2], sent[0], RESULT, sent[1], Message("user", "and now?"))
    healed = healer.heal(replace(request, messages=third))
    assert healed.turns == 2
    assert [m.token_ids for m in healed.request.messages if m.role == "assistant"] == [
        first.token_ids,
        second.token_ids,
    ]


def test_the_log_is_bounded():
    log = TurnLog(max_turns=3)
    for i in range(9):
        log.add("", bytes([i]), Message("assistant", "x", tool_calls=(ToolCall("t", {}, f"c{i}"),), token_ids=(1,)))
    assert len(log) == 3
    assert not log.find("", bytes([0]), Message("assistant", "x", tool_calls=(ToolCall("t", {}, "c0"),)))
    assert log.find("", bytes([8]), Message("assistant", "x"))
    assert len(log._by_call) == len(log._by_context) == 3


def test_an_unknown_level_is_refused():
    with pytest.raises(UsageError, match="heal is 'all', allowed is off, format, reasoning"):
        Healer(TurnLog(), "all")


def test_schema_defaults_may_be_left_out_too():
    logged = Message(
        "assistant", "", tool_calls=(ToolCall("edit_file", {"file": "a", "lines": [], "everywhere": False}),)
    )
    sent = Message("assistant", "", tool_calls=(ToolCall("edit_file", {"lines": [], "file": "a"}),))
    assert is_same_turn(logged, sent, tools=(EDIT,), allow_dropped_reasoning=True)
