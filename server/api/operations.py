"""What operators and tools ask for: health, readiness, metrics, models, tokens, version."""

from datetime import datetime, timezone

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from engine.interface.errors import RequestError
from engine.interface.version import installed_version
from server.api.body import run_sized
from server.api.chat_prompt import prepare_chat_prompt
from server.api.encoding import json_response, large_json_response
from server.api.prompts import check_token_ids, encode_text, render_chat
from server.api.requests import check_model_name, reading, server_state
from server.api.schemas import ChatCompletionRequest, DetokenizeRequest, TokenizeRequest
from server.serving import Phase, ServedModel, not_ready


async def health(request: Request) -> Response:
    """Say that the process is alive: 200 also while loading, busy or draining, 503 once the engine died."""
    phase = server_state(request).phase
    return json_response({"status": phase.value}, 503 if phase is Phase.DEAD else 200)


async def ready(request: Request) -> Response:
    """Say whether to send requests here: 503 while loading, draining, stalled or dead."""
    phase = server_state(request).phase
    if phase is Phase.READY:
        return json_response({"status": phase.value})
    raise not_ready(phase)


async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus's text format, or OpenMetrics if asked for."""
    encoder, content_type = choose_encoder(request.headers.get("accept", ""))
    body = encoder(server_state(request).metrics.registry)
    return Response(body, headers={"content-type": content_type})


async def list_models(request: Request) -> Response:
    """List the one model that is served."""
    model = server_state(request).loaded_model()
    if _is_anthropic(request):
        shown = {"data": [_anthropic_card(model)], "has_more": False}
        return json_response({**shown, "first_id": model.name, "last_id": model.name})
    return json_response({"object": "list", "data": [_model_card(model)]})


async def retrieve_model(request: Request) -> Response:
    """Describe the served model."""
    model = server_state(request).loaded_model()
    check_model_name(request.path_params["model"], model)
    return json_response(_anthropic_card(model) if _is_anthropic(request) else _model_card(model))


async def show_version(request: Request) -> Response:
    """Return the server's version, and once its model is there what runs it and what that promises."""
    model, shown = server_state(request).model, dict[str, object](version=installed_version())
    info = None if model is None else model.engine.info
    if info is not None:
        fields = ("device", "kernels", "dtype", "kv_cache_dtype", "numerics", "numerics_reason")
        shown["engine"] = {name: getattr(info, name) for name in fields}
    return json_response(shown)


async def tokenizer_info(request: Request) -> Response:  # as vLLM's, which lm-eval reads
    """Describe the tokenizer and the chat template."""
    model = server_state(request).loaded_model()
    template = model.chat_template
    bos, eos = (
        _special_text(model, token_id)
        for token_id in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id)
    )
    return json_response(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": model.tokenizer.vocab_size,
            "model_max_length": model.engine.limits.max_model_len,
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": eos,
            "chat_template": None if template is None else template.source,
        }
    )


async def render_chat_prompt(request: Request) -> Response:
    """Return the prompt that a chat's body makes, as text and tokens; nothing is generated."""
    async with reading(request, ChatCompletionRequest) as parsed:
        model = server_state(request).loaded_model()
        size = sum(len(message.content) for message in parsed.body.messages)
        prompt = await run_sized(model.work_size(size), prepare_chat_prompt, parsed.body, model)
        warnings = [{"param": w.param, "message": w.message} for w in (*parsed.warnings, *prompt.warnings)]
        reply: dict[str, object] = {
            "prompt": prompt.text,
            "token_ids": prompt.token_ids,
            "count": len(prompt.token_ids),
        }
        return await run_sized(
            size, large_json_response, {**reply, "warnings": warnings} if warnings else reply
        )


def _special_text(model: ServedModel, token_id: int | None) -> str | None:
    return None if token_id is None else model.tokenizer.decode([token_id], skip_special_tokens=False)


async def tokenize(request: Request) -> Response:
    """Return the token ids of a text or of a rendered conversation."""
    async with reading(request, TokenizeRequest) as parsed:
        model, body = server_state(request).loaded_model(), parsed.body
        size = len(body.prompt or "") + sum(len(message.content) for message in body.messages or ())
        return await run_sized(model.work_size(size), _tokenize, body, model)


async def detokenize(request: Request) -> Response:
    """Return the text of token ids."""
    async with reading(request, DetokenizeRequest) as parsed:
        model, body = server_state(request).loaded_model(), parsed.body
        return await run_sized(len(body.tokens), _detokenize, body, model)


def _detokenize(body: DetokenizeRequest, model: ServedModel) -> Response:
    check_token_ids(body.tokens, model.engine.limits.vocab_size, param="tokens")
    text = model.tokenizer.decode(body.tokens, skip_special_tokens=body.skip_special_tokens)
    return json_response({"prompt": text})


def _tokenize(body: TokenizeRequest, model: ServedModel) -> Response:
    token_ids = _token_ids(body, model)
    reply: dict[str, object] = {
        "count": len(token_ids),
        "max_model_len": model.engine.limits.max_model_len,
        "tokens": list(token_ids),
    }
    if body.return_token_strs:
        reply["token_strs"] = [model.tokenizer.decode([token_id]) for token_id in token_ids]
    return large_json_response(reply)


def _token_ids(body: TokenizeRequest, model: ServedModel) -> tuple[int, ...]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", param="prompt")
    if body.messages is None:
        return encode_text(body.prompt or "", model, param="prompt", add_bos=body.add_special_tokens)
    chat = render_chat(body.messages, model, add_generation_prompt=body.add_generation_prompt)
    add_bos = bool(body.add_special_tokens)
    return encode_text(chat.text, model, param="messages", add_bos=add_bos, stand_ins=chat.stand_ins)


def _is_anthropic(request: Request) -> bool:
    """Tell whether a client speaks Anthropic's API: their SDK says which version of it."""
    return "anthropic-version" in request.headers


def _anthropic_card(model: ServedModel) -> dict[str, object]:
    limit = model.engine.limits.max_model_len
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created, timezone.utc).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": limit,
        "max_tokens": limit,
    }


def _model_card(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "draftline",
        "max_model_len": model.engine.limits.max_model_len,
    }
