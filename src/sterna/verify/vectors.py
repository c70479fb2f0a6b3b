"""Tokenizer and template against published vectors (specification §1.5, §6.4), as far as they apply to a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from sterna.chat.format import ChatFormat
from sterna.chat.messages import ChatRequest, Message, Tool, ToolCall
from sterna.config import ModelConfig
from sterna.verify.checks import PASS, SKIP, Check, verdict

OFFICIAL_TEMPLATE = "e84f32a23fdda27689f868aa4a1a5621f41133e51a48d7f3efcbea2839574259"
OFFICIAL_VOCABULARY = 248_077
# Text and the ids with which the official tokenizer begins it.
TEXTS = (("Hello! 毕老师！1 + 1 = 2", (9419, 0, 220, 97169, 97621, 6115, 16, 478)), ("A\n", (32, 198)))
ROUND_TRIPS = (
    "def f(x):\n\treturn x  # tab", "naïve café ﬁ", "  leading, trailing  ", "12345", "俱乐部 加拿大", "🦆🦆",
    "<|im_start|>system is text here", "line\r\nline\n\n\nend",
)  # fmt: skip
_WEATHER = Tool(
    "get_weather", "Weather now",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)  # fmt: skip
_CONVERSATION = (
    Message("user", "Weather in Paris?"),
    Message("assistant", "Checking.", "Need tool.", (ToolCall("get_weather", {"city": "Paris"}, "call_1"),)),
    Message("tool", '{"t": 21}', tool_call_id="call_1"),
    Message("assistant", "21 C", "Done."),
    Message("user", "Thanks"),
)
_BRIEF = (Message("system", "Be brief."), Message("user", "Weather in Paris?"))
_HELLO = (Message("user", "Hello"),)
# Request, characters, first half of the SHA-256 of the rendering, tokens.
RENDERINGS: tuple[tuple[str, ChatRequest, int, str, int], ...] = (
    ("V1", ChatRequest(_HELLO, preserve_thinking=False), 63, "bcff7d22d26a5158", 11),
    ("V2", ChatRequest(_HELLO, preserve_thinking=False, enable_thinking=False), 74, "13071b0f0e23e976", 13),
    ("V3", ChatRequest(_BRIEF, tools=(_WEATHER,), preserve_thinking=False), 1191, "5aeb33a4d75f02ae", 272),
    ("V4", ChatRequest(_CONVERSATION, tools=(_WEATHER,), preserve_thinking=False), 1460, "cecac2e5bbd9490e", 331),
    ("V5", ChatRequest(_CONVERSATION, tools=(_WEATHER,), preserve_thinking=True), 1513, "55f1b5e2f958e66a", 346),
)


def vector_checks(directory: Path, config: ModelConfig) -> Iterator[Check]:
    """Tokenizer, then template."""
    chat = ChatFormat.load(directory)
    yield _tokenizer(chat, config)
    yield _template(chat, directory)


def _tokenizer(chat: ChatFormat, config: ModelConfig) -> Check:
    tokenizer = chat.tokenizer
    problems = []
    if tokenizer.vocab_size > config.text.vocab_size:
        problems.append(f"{tokenizer.vocab_size} token ids, the embedding has {config.text.vocab_size} rows")
    for text in ROUND_TRIPS:
        ids = tokenizer.encode(text)
        if tokenizer.encode(tokenizer.decode(ids)) != ids:
            problems.append(f"{text!r} does not come back from its tokens")
    for name in ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>"):
        if name not in tokenizer.control_tokens:
            problems.append(f"there is no token {name}")
    if not set(config.eos_token_ids) <= set(tokenizer.control_literals):
        problems.append(f"the end tokens {list(config.eos_token_ids)} are not all control tokens")
    words = f"{tokenizer.vocab_size:,} ids, {len(ROUND_TRIPS)} texts come back whole"
    if tokenizer.vocab_size == OFFICIAL_VOCABULARY:
        for text, published in TEXTS:
            found = tokenizer.encode(text)[: len(published)]
            if found != list(published):
                problems.append(f"{text!r} begins with {found}, published is {list(published)}")
        words += f", {len(TEXTS)} published encodings"
    return verdict("tokenizer", problems, words, hint="tokenizer.json belongs to another model or is damaged")


def _template(chat: ChatFormat, directory: Path) -> Check:
    problems = []
    for name, request, length, digest, tokens in RENDERINGS:
        prompt = chat.render(request)
        found = hashlib.sha256(prompt.text.encode()).hexdigest()[:16]
        if (len(prompt.text), found) != (length, digest):
            problems.append(
                f"{name} renders to {len(prompt.text)} characters ({found}), published are {length} ({digest})"
            )
        elif chat.tokenizer.vocab_size == OFFICIAL_VOCABULARY and len(prompt.token_ids) != tokens:
            problems.append(f"{name} has {len(prompt.token_ids)} tokens, published are {tokens}")
    path = directory / "chat_template.jinja"
    official = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == OFFICIAL_TEMPLATE
    if problems and not official:
        return Check("chat template", SKIP, "not the official template, and it renders otherwise: " + problems[0])
    origin = "the official template" if official else "another template than the official one"
    if not problems:
        return Check("chat template", PASS, f"{origin}; all {len(RENDERINGS)} published renderings agree")
    return verdict("chat template", problems, "", hint="this is a fault of sterna: please report it")
