"""The endpoints that generate or count, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sterna.chat.messages import Message
from sterna.server import (
    anthropic_messages,
    fields,
    openai_chat,
    openai_completions,
    openai_responses,
    responses_stream,
)
from sterna.server.errors import FieldError, StatusError
from sterna.server.handlers import body_of, collect, key_of, refusing, service_of
from sterna.server.openai_responses import ResponsesRequest
from sterna.server.responses_stream import ResponseStore, StoredResponse
from sterna.server.service import Generation
from sterna.server.sse import event_stream, json_response


@refusing
async def chat_completions(request: Request) -> Response:
    """``POST /v1/chat/completions``."""
    service = service_of(request)
    body = await body_of(request)
    parsed = openai_chat.parse(body, service.turns, max_choices=service.limits.max_choices)
    generation = await service.chat(parsed.request, key=key_of(request), choices=parsed.choices)
    model = service.llm.name
    if parsed.stream:
        renderer = openai_chat.StreamRenderer(model, choices=parsed.choices, include_usage=parsed.include_usage)
        return event_stream(generation, renderer, service.limits, headers=_warnings(parsed.warnings))
    answers = [openai_chat.Answer() for _ in range(parsed.choices)]
    await collect(request, generation, lambda index, event: answers[index].feed(event))
    return json_response(openai_chat.completion_json(model, answers), headers=_warnings(parsed.warnings))


@refusing
async def completions(request: Request) -> Response:
    """``POST /v1/completions``."""
    service = service_of(request)
    body = await body_of(request)
    parsed = openai_completions.parse(body, service.llm.chat_format.tokenizer, max_choices=service.limits.max_choices)
    generation = service.complete(parsed.token_ids, parsed.sampling, key=key_of(request), choices=parsed.choices)
    renderer = openai_completions.StreamRenderer(service.llm.name, parsed)
    if parsed.stream:
        return event_stream(generation, renderer, service.limits)
    await collect(request, generation, renderer.collect)
    return json_response(renderer.body())


@refusing
async def messages(request: Request) -> Response:
    """``POST /v1/messages``."""
    service = service_of(request)
    parsed = anthropic_messages.parse(await body_of(request), service.turns)
    generation = await service.chat(parsed.request, key=key_of(request), callable_tools=parsed.callable_tools)
    renderer = anthropic_messages.StreamRenderer(
        service.llm.name,
        service.turns,
        parsed,
        prompt_tokens=generation.prompt_tokens,
        eos=service.llm.chat_format.tokenizer.eos_token_ids,
    )
    if parsed.stream:
        return event_stream(generation, renderer, service.limits, headers=_warnings(parsed.warnings))
    await collect(request, generation, lambda index, event: _drop(renderer.feed(index, event)))
    return json_response(renderer.message, headers=_warnings(parsed.warnings))


@refusing
async def count_message_tokens(request: Request) -> Response:
    """``POST /v1/messages/count_tokens``."""
    service = service_of(request)
    parsed = anthropic_messages.parse(await body_of(request), service.turns)
    prompt = await service.render(parsed.request)
    return json_response({"input_tokens": len(prompt.token_ids)})


@refusing
async def responses(request: Request) -> Response:
    """``POST /v1/responses``."""
    service = service_of(request)
    body = await body_of(request)
    parsed = openai_responses.parse(body, service.turns, _history(request, body))
    generation = await service.chat(parsed.request, key=key_of(request))
    renderer = responses_stream.StreamRenderer(service.llm.name, service.turns, parsed)
    _keep(request, generation, renderer, parsed)
    if parsed.stream:
        return event_stream(generation, renderer, service.limits, headers=_warnings(parsed.warnings))
    await collect(request, generation, lambda index, event: _drop(renderer.feed(index, event)))
    return json_response(renderer.response, headers=_warnings(parsed.warnings))


@refusing
async def count_response_tokens(request: Request) -> Response:
    """``POST /v1/responses/input_tokens``."""
    service = service_of(request)
    body = await body_of(request)
    prompt = await service.render(openai_responses.parse(body, service.turns, _history(request, body)).request)
    return json_response({"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)})


@refusing
async def response(request: Request) -> Response:
    """``GET`` and ``DELETE /v1/responses/{id}``."""
    found = _stored(request, request.path_params["response"])
    if request.method != "DELETE":
        return json_response(found.body)
    _store(request).delete(found.body["id"])
    return json_response({"id": found.body["id"], "object": "response.deleted", "deleted": True})


@refusing
async def cancel_response(request: Request) -> Response:
    """``POST /v1/responses/{id}/cancel``: ends an answer that is being streamed; a finished one stays as it is."""
    response_id = request.path_params["response"]
    running = request.app.state.running.get(response_id)
    if running is None:
        return json_response(_stored(request, response_id).body)
    key, generation, body = running
    if key != key_of(request):
        raise StatusError(404, f"there is no response {response_id[:80]!r}")
    generation.cancel()
    return json_response({**body, "status": "cancelled"})


def _keep(
    request: Request, generation: Generation, renderer: responses_stream.StreamRenderer, parsed: ResponsesRequest
) -> None:
    """List the response as running until its generation ends, and store it then."""
    state, key, response_id = request.app.state, key_of(request), renderer.response["id"]
    state.running[response_id] = (key, generation, renderer.response)

    def ended() -> None:
        state.running.pop(response_id, None)
        if renderer.answer is not None and parsed.store:
            conversation = (*parsed.conversation, renderer.answer)
            state.responses.put(StoredResponse(renderer.response, conversation, key))

    generation.on_closed = ended


def _store(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses
    return store


def _stored(request: Request, response_id: str) -> StoredResponse:
    found = _store(request).get(response_id, key=key_of(request))
    if found is None:
        raise StatusError(404, f"there is no response {response_id[:80]!r}")
    return found


def _history(request: Request, body: dict[str, Any]) -> Sequence[Message]:
    previous = fields.text(body, "previous_response_id")
    if not previous:
        return ()
    found = _store(request).get(previous, key=key_of(request))
    if found is None:
        raise FieldError("previous_response_id", f"names {previous[:80]!r}, which is not stored here")
    return found.messages


def _warnings(warnings: Sequence[str]) -> dict[str, str]:
    return {"Sterna-Warning": "; ".join(warnings)} if warnings else {}


def _drop(pieces: Any) -> None:
    for _ in pieces:
        pass
