"""Models that think before they answer, on the wire."""

import json
from dataclasses import replace
from typing import Any

import pytest

from server.text import ChatTemplate
from tests.fakes import CHAT_TEMPLATE, FakeEngine, say
from tests.server.harness import RunningServer, serving, sse_data

HELLO = [{"role": "user", "content": "hello"}]
NOW = {"type": "function", "function": {"name": "now"}}
THINKING = (
    CHAT_TEMPLATE
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
OPENING = CHAT_TEMPLATE + "<think>\n"


@pytest.fixture
def server():
    with serving(FakeEngine(lambda _: say("<think>\nhm\n</think>\n\nYes.", eos=True))) as running:
        think(running, THINKING)
        yield running


def think(server: RunningServer, template: str) -> None:
    assert server.state.model is not None
    made = ChatTemplate(template, bos_token="", eos_token="")
    server.state.publish(replace(server.state.model, chat_template=made, has_reasoning=True))


def post(server: RunningServer, **body: Any) -> Any:
    response = server.client.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert response.status_code == 200, response.text
    return response


def both(server: RunningServer, **body: Any) -> dict[str, Any]:
    """Return the message, which a stream brings piece by piece."""
    message: dict[str, Any] = post(server, **body).json()["choices"][0]["message"]
    parts = [
        c["delta"] for chunk in sse_data(post(server, **body, stream=True).text) for c in chunk["choices"]
    ]
    assert "".join(part.get("content") or "" for part in parts) == (message["content"] or "")
    thought = "".join(part.get("reasoning_content", "") for part in parts)
    assert thought == message.get("reasoning_content", "")
    return message


def prompt_of(server: RunningServer) -> str:
    return bytes(i for i in server.engine.requests[-1].prompt_token_ids if i < 256).decode()


def test_the_thought_is_apart_and_counted(server: RunningServer) -> None:
    message = both(server)
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")
    usage = post(server).json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len("\nhm\n</think>")
    assert usage["completion_tokens"] == len("<think>\nhm\n</think>\n\nYes.") + 1


def test_a_thought_that_the_prompt_begins(server: RunningServer) -> None:
    think(server, OPENING)
    server.engine.script = lambda _: say("hm</think>Yes.", eos=True, tokens_per_step=4)
    message = both(server)
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")


def test_no_thought_where_the_template_closed_it(server: RunningServer) -> None:
    server.engine.script = lambda _: say("Yes.", eos=True)
    message = both(server, reasoning_effort="none")
    assert prompt_of(server).endswith("<think>\n\n</think>\n\n")
    assert message == {"role": "assistant", "content": "Yes.", "refusal": None}
    both(server, chat_template_kwargs={"enable_thinking": False})
    assert prompt_of(server).endswith("</think>\n\n")
    both(server, reasoning_effort="high")
    assert not prompt_of(server).endswith("</think>\n\n")


def tag_of(server: RunningServer, **body: Any) -> dict[str, Any]:
    post(server, **body)
    grammar = server.engine.requests[-1].params.grammar
    assert grammar is not None
    source: dict[str, Any] = json.loads(grammar.source)
    return source


def test_a_budget_is_a_grammar(server: RunningServer) -> None:
    tag = tag_of(server, reasoning={"max_tokens": 12})
    assert tag["thought"] == {
        "begin_token_ids": list(b"<think>"),
        "end": "</think>",
        "end_token_ids": list(b"</think>"),
        "max_tokens": 12,
    }
    assert (tag["structures"], tag["answer"]) == ([], None)
    think(server, OPENING)
    form = {"type": "json_object"}
    tag = tag_of(server, reasoning={"max_tokens": 12}, response_format=form)
    assert (tag["thought"]["begin_token_ids"], tag["answer"]) == ([], {"type": "object"})
    tag = tag_of(server, tools=[NOW], tool_choice="required")
    assert tag["thought"]["max_tokens"] == 4096, "the thought that the prompt began comes first"


def test_a_grammar_of_the_whole_answer_leaves_no_room_for_a_thought(server: RunningServer) -> None:
    think(server, OPENING)
    server.engine.script = lambda _: say("Yes.", eos=True)
    message = both(server, structured_outputs={"regex": "Yes\\."})
    assert message == {"role": "assistant", "content": "Yes.", "refusal": None}


def test_thoughts_of_earlier_turns_reach_the_template(server: RunningServer) -> None:
    think(server, "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }};{% endfor %}")
    post(server, messages=[*HELLO, {"role": "assistant", "reasoning_content": "hm", "content": "Yes."}])
    assert prompt_of(server) == "|hello;hm|Yes.;"


def test_what_a_model_does_not_know_is_a_warning() -> None:
    with serving(FakeEngine()) as server:
        body = {"reasoning_effort": "high", "reasoning": {"max_tokens": 5}, "verbosity": "low"}
        reply = post(server, **body, chat_template_kwargs={"style": "plain"}).json()
        assert {w["param"] for w in reply["warnings"]} == {
            "reasoning_effort",
            "reasoning.max_tokens",
            "verbosity",
            "chat_template_kwargs.style",
        }
        headers = {"X-Strict": "1"}
        body = {"messages": HELLO, "reasoning_effort": "high"}
        response = server.client.post("/v1/chat/completions", json=body, headers=headers)
        assert response.status_code == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning": 5}, "reasoning"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ({"reasoning": {"max_tokens": True}}, "reasoning.max_tokens"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_bad_values_are_named(server: RunningServer, body: dict[str, Any], param: str) -> None:
    response = server.client.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
