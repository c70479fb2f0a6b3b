"""One checkpoint's way of talking: its tokenizer and its template, joined.

chat = ChatFormat.load(checkpoint_dir)
prompt = chat.render(request)            # prompt.token_ids go to the engine
parser = chat.parser(request)            # parser.feed(token_id) -> events, parser.finish(reason) -> events with End
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sterna.chat.messages import ChatRequest
from sterna.chat.normalise import continuation_of, normalise
from sterna.chat.sentinels import Segment
from sterna.chat.stream_parser import StreamParser
from sterna.chat.template import ChatTemplate
from sterna.chat.tokenizer import Tokenizer
from sterna.errors import UsageError
from sterna.vision.media import PAD, VISION_END, VISION_START

_MEDIA = re.compile("|".join(re.escape(VISION_START + pad + VISION_END) for pad in PAD.values()))


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A request as the model reads it.

    Attributes:
        token_ids: the prompt, complete; nothing has to be added.
        text: the same as text. Control tokens and text that looks like them differ only in ``token_ids``.
        turn_starts: indices into ``token_ids`` at which a turn of the template begins; the first turn that is not
            the system's starts where a snapshot of system and tools is worth keeping.
        media: the image and video parts in the order of their placeholders.
        placeholders: indices into ``token_ids`` of the image and video tokens that the template printed.
        starts_in_reasoning: what the model writes first is reasoning.
    """

    token_ids: tuple[int, ...]
    text: str
    turn_starts: tuple[int, ...]
    media: tuple[Mapping[str, Any], ...] = ()
    placeholders: tuple[int, ...] = ()
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

    def media_parts(self, request: ChatRequest) -> tuple[Mapping[str, Any], ...]:
        """The image and video parts of a request in the order in which `render` prints them.

        Raises:
            UsageError: as `render`.
        """
        return normalise(request).media

    def render(self, request: ChatRequest, placeholders: Sequence[str] | None = None) -> RenderedPrompt:
        """The prompt of a request; any order of roles and form of content is acceptable.

        ``placeholders`` are the texts that stand for the images and videos, one each, in the order of `media_parts`;
        without them each has one token, as the template prints it.

        Raises:
            UsageError: a content part of a kind that the model cannot read, or not one placeholder for each.
            TemplateError: the template fails or exceeds its limits.
            TokenizerError: a text holds a lone surrogate.
        """
        conversation = normalise(request)
        segments = self.template.render(conversation)
        if placeholders is not None:
            segments = _expand(segments, placeholders)
        token_ids, at = self._encode(segments)
        start_id = self.tokenizer.control_tokens.get("<|im_start|>")
        return RenderedPrompt(
            token_ids=tuple(token_ids),
            text="".join(self._text(segment) for segment in segments),
            turn_starts=tuple(i for i, token_id in enumerate(token_ids) if token_id == start_id),
            media=tuple(conversation.media),
            placeholders=tuple(at),
            starts_in_reasoning=self._starts_in_reasoning(request),
        )

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of rendered segments; neighbouring text is encoded as one piece, as if it had never been apart."""
        return self._encode(segments)[0]

    def _encode(self, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
        """Token ids, and the indices of the image and video tokens that are the template's own."""
        ids: list[int] = []
        placeholders: list[int] = []
        pads = {self.tokenizer.control_tokens.get(pad) for pad in PAD.values()}
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
                    ids += self.tokenizer.encode(text)
                    text = ""
                    if token_id in pads:
                        placeholders.append(len(ids))
                    ids.append(token_id)
        return ids + self.tokenizer.encode(text), placeholders

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


def _expand(segments: Sequence[Segment], placeholders: Sequence[str]) -> list[Segment]:
    """The segments with a placeholder text for every image and video that the template printed."""
    remaining = iter(placeholders)
    count = sum(len(_MEDIA.findall(segment.text)) for segment in segments if segment.is_control)
    if count != len(placeholders):
        raise UsageError(f"the chat template prints {count} images and videos, the request has {len(placeholders)}")
    return [
        replace(segment, text=_MEDIA.sub(lambda _: next(remaining), segment.text)) if segment.is_control else segment
        for segment in segments
    ]
