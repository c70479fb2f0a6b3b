"""Goes on with a stored conversation from its tokens: what was said is not rendered and not tokenised again."""

from __future__ import annotations

from sterna.chat.format import ChatFormat
from sterna.chat.messages import ChatRequest
from sterna.errors import SessionError
from sterna.sessions.session import Session

TURN_END = "<|im_end|>"


def transcript(session: Session, chat_format: ChatFormat, *, last_tokens: int) -> str:
    """The end of what was said, as text with its markup."""
    return chat_format.tokenizer.decode(plain_tokens(session)[-last_tokens:])


def plain_tokens(session: Session) -> list[int]:
    """The tokens of a session; raises `SessionError` where images stand among them, which are not stored."""
    tokens: list[int] = session.tokens.tolist()
    if min(tokens, default=0) < 0:
        raise SessionError(f"session {session.id} holds images, allowed is text", hint="send the images again")
    return tokens


def next_prompt(tokens: list[int], chat_format: ChatFormat, request: ChatRequest) -> list[int]:
    """The tokens so far, their last turn closed, and the turns of ``request`` with the opening of its answer."""
    tokenizer = chat_format.tokenizer
    closing = [] if tokens[-1] in tokenizer.eos_token_ids else [tokenizer.control_id(TURN_END)]
    rendered = chat_format.render(request)
    first = rendered.turn_starts[-1 - len(request.messages)]
    return [*tokens, *closing, *tokenizer.encode("\n"), *rendered.token_ids[first:]]
