"""Stop strings against a definition that sees the whole text at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.chat.stop_strings import StopStringMatcher
from support.chat import tiny_tokenizer


def run(token_ids, stop):
    matcher = StopStringMatcher(stop, tiny_tokenizer())
    out = []
    for token_id in token_ids:
        out += matcher.feed(token_id)
    if matcher.matched is None:
        out += matcher.flush()
    return out, matcher.matched


@settings(max_examples=200, deadline=None)
@given(text=st.text("abé😀 ", max_size=30), stop=st.lists(st.text("abé😀 ", min_size=1, max_size=4), max_size=3))
def test_the_text_before_the_first_match_comes_out(text, stop):
    tokenizer = tiny_tokenizer()
    out, matched = run(tokenizer.encode(text), stop)
    ends = [(text.find(string) + len(string), text.find(string)) for string in stop if string in text]
    expected = text[: min(ends)[1]] if ends else text
    assert tokenizer.decode(out) == expected
    assert (matched is None) == (not ends)
    if matched is None:
        assert out == tokenizer.encode(text)


def test_nothing_is_held_longer_than_needed():
    tokenizer = tiny_tokenizer()
    matcher = StopStringMatcher(["xyz"], tokenizer)
    (a,), (x,) = tokenizer.encode("a"), tokenizer.encode("x")
    assert matcher.feed(a) == [a]
    assert matcher.feed(x) == []
    assert matcher.feed(a) == [x, a]


def test_without_stop_strings_everything_passes_at_once():
    tokenizer = tiny_tokenizer()
    matcher = StopStringMatcher([], tokenizer)
    for token_id in tokenizer.encode("hello there"):
        assert matcher.feed(token_id) == [token_id]


@pytest.mark.parametrize("more", ["", "more"])
def test_after_a_match_nothing_comes_out(more):
    tokenizer = tiny_tokenizer()
    out, matched = run(tokenizer.encode("one END two" + more), ["END"])
    assert (tokenizer.decode(out), matched) == ("one ", "END")
