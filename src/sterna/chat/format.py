"""One checkpoint's way of talking: its tokenizer and its template, joined.

chat = ChatFormat.load(checkpoint_dir)
prompt = chat.render(request)            # prompt.token_ids go to the engine
parser = chat.parser(request)            # parser.feed(token_id) -> events, parser.finish(reason) -> events with End
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.chat.messages import ChatRequest
from sterna.chat.normalise import continuation_of, normalise
from sterna.chat.sentinels import Segment
from sterna.chat.stream_parser import StreamParser
from sterna.chat.template import ChatTemplate
from sterna.chat.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A request as the model reads it.

    Attributes:
        token_ids: the prompt, complete; nothing has to be added.
        text: the same as text. Control tokens and text that looks like them differ only in ``token_ids``.
        turn_starts: indices into ``token_ids`` at which a turn of the template begins; the first turn that is not
            the system's starts where a snapshot of system and tools is worth keeping.
        media: the image and video parts in the order of their placeholders.
        starts_in_reasoning: what the model writes first is reasoning.
    """

    token_ids: tuple[int, ...]
    text: str
    turn_starts: tuple[int, ...]
    media: tuple[Mapping[str, Any], ...] = ()
    starts_in_reasoning: bool = False


class ChatFormat:
    """Renders requests to prompts and generated tokens to events."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self.template = template

    @classmethod
    def load(cls, checkpoint_dir: Path) -> ChatFormat:
        """Reads ``tokenizer.json``, the chat template and the end tokens of a checkpoint directory.

        Raises:
            TokenizerError, TemplateError: a file is missing or damaged.
        """
        return cls(Tokenizer.from_directory(checkpoint_dir), ChatTemplate.from_directory(checkpoint_dir))

    def render(self, request: ChatRequest) -> RenderedPrompt:
        """The prompt of a request; any order of roles and form of content is acceptable.

        Raises:
            UsageError: a content part of a kind that the model cannot read.
            TemplateError: the template fails or exceeds its limits.
            TokenizerError: a text holds a lone surrogate.
        """
        conversation = normalise(request)
        segments = self.template.render(conversation)
        token_ids = self.encode(segments)
        start_id = self.tokenizer.control_tokens.get("<|im_start|>")
        return RenderedPrompt(
            token_ids=tuple(token_ids),
            text="".join(self._text(segment) for segment in segments),
            turn_starts=tuple(i for i, token_id in enumerate(token_ids) if token_id == start_id),
            media=tuple(conversation.media),
            starts_in_reasoning=self._starts_in_reasoning(request),
        )

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of rendered segments; neighbouring text is encoded as one piece, as if it had never been apart."""
        ids: list[int] = []
        text = ""
        for segment in segments:
            if segment.token_ids is not None:
                ids += [*self.tokenizer.encode(text), *self._without_end(segment.token_ids)]
                text = ""
                continue
            pieces = self.tokenizer.split_control(segment.text) if segment.is_control else [(segment.text, None)]
            for piece, token_id in pieces:
                if token_id is None:
                    text += piece
                else:
                    ids += [*self.tokenizer.encode(text), token_id]
                    text = ""
        return ids + self.tokenizer.encode(text)

    def _without_end(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Sampled tokens without the end token, which the template prints itself."""
        end = len(token_ids)
        while end and token_ids[end - 1] in self.tokenizer.eos_token_ids:
            end -= 1
        return token_ids[:end]

    def _text(self, segment: Segment) -> str:
        if segment.token_ids is None:
            return segment.text
        return self.tokenizer.decode(self._without_end(segment.token_ids))

    def parser(self, request: ChatRequest) -> StreamParser:
        """A parser for the answer to ``request``; make one per answer."""
        return StreamParser(
            tools=request.tools,
            enable_thinking=request.enable_thinking,
            starts_in_reasoning=self._starts_in_reasoning(request),
            tokenizer=self.tokenizer,
            continued=request.messages[-1] if continuation_of(request) else None,
        )

    def _starts_in_reasoning(self, request: ChatRequest) -> bool:
        continuation = continuation_of(request)
        if continuation:
            return continuation == "reasoning"
        prompt = self.template.generation_prompt(enable_thinking=request.enable_thinking)
        return prompt.rfind("<think>") > prompt.rfind("</think>")
