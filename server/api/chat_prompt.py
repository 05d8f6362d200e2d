"""ChatPrompt: what a chat's body makes of the prompt, before anything is generated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.interface.errors import RequestError
from server.api.answer_plan import ToolPlan, plan_tools, template_variables
from server.api.fields import ChatMessage
from server.api.known_fields import FieldWarning
from server.api.prompts import RenderedChat, encode_text, loss_warnings, render_chat
from server.api.schemas import ChatCompletionRequest
from server.serving import ServedModel


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """The rendered and tokenised prompt of a chat."""

    text: str  # with control tokens, and as people wrote them what spells one
    token_ids: tuple[int, ...]
    tools: ToolPlan | None
    warnings: tuple[FieldWarning, ...]


def prepare_chat_prompt(body: ChatCompletionRequest, model: ServedModel) -> ChatPrompt:
    """Render and tokenise a conversation; raises RequestError."""
    if body.continue_final_message and body.add_generation_prompt:
        message = "add_generation_prompt and continue_final_message exclude each other"
        raise RequestError(message, param="continue_final_message")
    tools = plan_tools(body, model)
    variables, warnings = template_variables(body, model)
    begins_answer = not body.continue_final_message and body.add_generation_prompt is not False

    def render(messages: Sequence[ChatMessage]) -> RenderedChat:
        return render_chat(
            messages,
            model,
            add_generation_prompt=begins_answer,
            continue_final_message=body.continue_final_message,
            tools=() if tools is None else tools.tools,
            variables=variables,
        )

    chat = render(body.messages)
    text = chat.text + (tools.format.begin if tools is not None and tools.is_prefilled else "")
    token_ids = encode_text(text, model, param="messages", add_bos=False, stand_ins=chat.stand_ins)
    if not token_ids:
        raise RequestError("messages: the chat template makes nothing of them", param="messages")
    written = _as_written(text, chat.stand_ins)
    warnings += loss_warnings(written, model, param="messages")
    warnings += _name_warnings(body.messages, render, chat.text)
    return ChatPrompt(text=written, token_ids=token_ids, tools=tools, warnings=warnings)


def _name_warnings(
    messages: Sequence[ChatMessage], render: Callable[[Sequence[ChatMessage]], RenderedChat], text: str
) -> tuple[FieldWarning, ...]:
    """Return a warning about names of speakers if the template makes the same text without them."""
    named = [number for number, message in enumerate(messages) if message.name and message.role != "tool"]
    if not named or render([replace(message, name=None) for message in messages]).text != text:
        return ()
    param = f"messages[{named[0]}].name"
    return (FieldWarning(param=param, message=f"{param} had no effect: the chat template shows no names"),)


def _as_written(text: str, stand_ins: Mapping[str, str]) -> str:
    return text.translate({ord(stand_in): written for stand_in, written in stand_ins.items()})
