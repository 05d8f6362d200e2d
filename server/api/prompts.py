"""Prompts: from what the client wrote to token ids, and to the text that an echo repeats."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from engine.interface.errors import RequestError
from server.answers import Tool
from server.answers.prompt import with_tools_as_text
from server.api.fields import ChatMessage, Prompt
from server.api.known_fields import FieldWarning
from server.api.schemas import CompletionRequest
from server.serving import ServedModel
from server.text import TextError

_SEED_BITS = 53  # JavaScript reads no larger integers exactly
_NO_VARIABLES: Mapping[str, object] = MappingProxyType({})
_END_OF_CONTENT = "\U0010fffe"  # a code point that stands for no character
_MAX_SHRINK = 3  # normalisation never shortens text to less than a third of its bytes


@dataclass(frozen=True, kw_only=True)
class PreparedPrompt:
    """One prompt, tokenised."""

    token_ids: tuple[int, ...]
    seed: int
    echo: str = ""  # what a reply repeats of it
    num_hidden: int = 0  # begin tokens that the client did not write and the echo does not show
    skip_special_tokens: bool = False  # the echo shows no special token at all
    warnings: tuple[FieldWarning, ...] = ()


def prepare_prompt(prompt: Prompt, model: ServedModel, body: CompletionRequest) -> PreparedPrompt:
    """Tokenise a prompt of a completion; raises RequestError."""
    if body.suffix:
        return _prepare_middle(prompt, body.suffix, model, body)
    # Each prompt draws a seed, so that one given twice without a seed gets two answers.
    seed = draw_seed(body.seed)
    if prompt.text is None:
        return _prepare_ids(prompt, model, body, seed)
    token_ids, warnings = encode_prompt(prompt, model)
    if not body.echo:
        return PreparedPrompt(token_ids=token_ids, seed=seed, warnings=warnings)
    echo = prompt.text  # the client's own words, not a round trip of them
    num_hidden = len(model.tokenizer.encode(""))
    if body.logprobs is not None:  # but beside its tokens, what they spell
        echo = model.tokenizer.decode(token_ids[num_hidden:], skip_special_tokens=False)
    return PreparedPrompt(token_ids=token_ids, seed=seed, echo=echo, num_hidden=num_hidden, warnings=warnings)


def encode_prompt(prompt: Prompt, model: ServedModel) -> tuple[tuple[int, ...], tuple[FieldWarning, ...]]:
    """Return the token ids of a prompt, and what of it they leave out; raises RequestError."""
    if prompt.text is None:
        check_token_ids(prompt.token_ids, model.engine.limits.vocab_size, param="prompt")
        return prompt.token_ids, ()
    token_ids = encode_text(prompt.text, model, param="prompt")
    if not token_ids:
        message = "prompt must not be empty, and the model has no token for any of it"
        raise RequestError(message, param="prompt")
    return token_ids, loss_warnings(prompt.text, model, param="prompt")


def _prepare_middle(
    prompt: Prompt, suffix: str, model: ServedModel, body: CompletionRequest
) -> PreparedPrompt:
    """Put the texts before and behind an answer between the tokens that a code model was trained with."""
    tokens = model.fill_in_middle
    if tokens is None:
        message = f"suffix: the vocabulary of {model.name} has no tokens to fill in the middle with"
        raise RequestError(message, param="suffix", code="unsupported_parameter")
    if body.echo:
        raise RequestError("suffix and echo exclude each other", param="suffix")
    behind = encode_text(suffix, model, param="suffix", add_bos=False)
    warnings = loss_warnings(suffix, model, param="suffix")
    begin: tuple[int, ...] = ()
    if prompt.text is None:
        check_token_ids(prompt.token_ids, model.engine.limits.vocab_size, param="prompt")
        before = prompt.token_ids
    else:
        begin = tuple(model.tokenizer.encode(""))  # the begin token, where texts have one
        before = encode_text(prompt.text, model, param="prompt", add_bos=False)
        warnings = loss_warnings(prompt.text, model, param="prompt") + warnings
    token_ids = (*begin, *tokens.prompt(before, behind))
    return PreparedPrompt(token_ids=token_ids, seed=draw_seed(body.seed), warnings=warnings)


def loss_warnings(text: str, model: ServedModel, *, param: str) -> tuple[FieldWarning, ...]:
    """Return a warning if the vocabulary lacks bytes of a text, which are left out."""
    lost = model.tokenizer.first_lost(text)
    if lost is None:
        return ()
    message = f"{param}: the model's vocabulary cannot express all of it (first U+{ord(lost):04X}); left out"
    return (FieldWarning(param=param, message=message),)


def _prepare_ids(prompt: Prompt, model: ServedModel, body: CompletionRequest, seed: int) -> PreparedPrompt:
    token_ids, _ = encode_prompt(prompt, model)
    skip = body.skip_special_tokens
    echo = model.tokenizer.decode(token_ids, skip_special_tokens=skip) if body.echo else ""
    return PreparedPrompt(token_ids=token_ids, seed=seed, echo=echo, skip_special_tokens=skip)


@dataclass(frozen=True, kw_only=True)
class RenderedChat:
    """What a chat template made of a conversation."""

    text: str
    stand_ins: Mapping[str, str]  # characters that people wrote, where the text has stand-ins for them


def draw_seed(seed: int | None) -> int:
    """Return the seed that a client gave, or a new one."""
    return secrets.randbits(_SEED_BITS) if seed is None else seed


def render_chat(
    messages: Sequence[ChatMessage],
    model: ServedModel,
    *,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    tools: Sequence[Tool] = (),
    variables: Mapping[str, object] = _NO_VARIABLES,
) -> RenderedChat:
    """Return what the chat template makes of `messages` and `tools`; raises RequestError.

    A template that knows no tools gets them as plain messages (server/answers/prompt.py). Control tokens come
    from the template alone: what spells one in a message or a tool stays text. With `continue_final_message`
    the prompt ends with the last message's content.
    """
    if model.chat_template is None:
        raise RequestError(
            f"the model {model.name} has no chat template; use /v1/completions", param="messages"
        )
    for_template: Sequence[Mapping[str, object]]
    for_template = [message.for_template(developer_role=model.developer_role) for message in messages]
    if continue_final_message:
        for_template = [*for_template[:-1], _marked(for_template[-1])]
    definitions: Sequence[Mapping[str, object]] = [tool.definition for tool in tools]
    if "tools" not in model.chat_template.variables:
        for_template, definitions = with_tools_as_text(for_template, definitions), []
    stand_ins: Mapping[str, str] = {}
    if model.content_guard is not None:
        try:
            guarded, stand_ins = model.content_guard.guard([*for_template, *definitions])
        except TextError as error:
            raise RequestError(str(error), param="messages") from None
        for_template, definitions = guarded[: len(for_template)], guarded[len(for_template) :]
    text = model.chat_template.render(
        for_template,
        add_generation_prompt=add_generation_prompt,
        tools=definitions or None,
        variables=variables,
    )
    if continue_final_message:
        text, mark, _ = text.rpartition(_END_OF_CONTENT)
        if not mark:
            message = "continue_final_message: the chat template does not show the last message"
            raise RequestError(message, param="continue_final_message")
    return RenderedChat(text=text, stand_ins=stand_ins)


def _marked(message: Mapping[str, object]) -> dict[str, object]:
    """Return a message with a mark behind its content, where the prompt is to be cut."""
    content = str(message["content"])
    if _END_OF_CONTENT in content:
        raise RequestError("messages: the last one holds U+10FFFE, which is no character", param="messages")
    return {**message, "content": content + _END_OF_CONTENT}


def encode_text(
    text: str,
    model: ServedModel,
    *,
    param: str,
    add_bos: bool | None = None,
    stand_ins: Mapping[str, str] | None = None,
) -> tuple[int, ...]:
    """Return the token ids of `text`; raises RequestError if it is far too long to be worth encoding."""
    limit = model.engine.limits.max_model_len
    num_bytes = len(text) if text.isascii() else len(text.encode())
    if num_bytes > limit * model.max_token_bytes * _MAX_SHRINK:
        raise RequestError(
            f"this model's maximum context length is {limit} tokens; {param} has {num_bytes} bytes, more "
            "than they can hold",
            param=param,
            code="context_length_exceeded",
        )
    try:
        return tuple(model.tokenizer.encode(text, add_bos=add_bos, stand_ins=stand_ins))
    except TextError as error:
        raise RequestError(str(error), param=param) from None


def check_token_ids(token_ids: Sequence[int], vocab_size: int, *, param: str) -> None:
    """Raise RequestError for the first id outside the vocabulary."""
    if min(token_ids, default=0) >= 0 and max(token_ids, default=0) < vocab_size:
        return
    wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
    shown = str(wrong) if abs(wrong) < 10**20 else "a far larger number"
    raise RequestError(f"{param}: token ids must be between 0 and {vocab_size - 1}, got {shown}", param=param)
