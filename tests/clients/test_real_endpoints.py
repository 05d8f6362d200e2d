"""Both clients and the real server: seeds, provenance, embeddings, stored responses, rendered prompts."""

import json
import secrets
from array import array
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from draftline_client import BadRequestError, NotFoundError, ProvenanceSummary

from tests.clients.real import RealServer

HELLO = [{"role": "user", "content": "tell me"}]
STORY: dict[str, Any] = {"prompt": "tell me, tell me", "max_tokens": 40, "ignore_eos": True}


@pytest.fixture
def client(build: Callable[..., Any], real: RealServer) -> Any:
    return build(base_url=real.url)


def test_the_seed_of_a_reply_gives_it_again(client: Any) -> None:
    first = client.completions.create(**STORY, n=2)
    again = client.completions.create(**STORY, n=2, seed=first.seed)
    assert first.seed is not None
    assert [choice.text for choice in again.choices] == [choice.text for choice in first.choices]
    assert first.choices[0].text != first.choices[1].text
    answer = client.chat.create(messages=HELLO, max_tokens=20)
    assert client.chat.create(messages=HELLO, max_tokens=20, seed=answer.seed).text == answer.text
    response = client.responses.create(input="tell me", max_output_tokens=20)
    streamed = client.responses.create(input="tell me", max_output_tokens=20, seed=response.seed, stream=True)
    assert streamed.get_final_response().text == response.text


def test_provenance_in_short_agrees_with_usage(client: Any) -> None:
    reply = client.completions.create(
        **STORY, return_provenance=True, return_token_ids=True, speculation={"mode": "draft", "k": 4}
    )
    summary = ProvenanceSummary.of(reply.choices[0].provenance)
    usage = reply.usage
    assert sum(summary.counts.values()) == usage.completion_tokens == len(reply.choices[0].token_ids)
    assert summary.counts["draft"] == usage.speculation.accepted
    assert len(summary.step_starts) < usage.completion_tokens
    assert usage.speculation.source == "draft"
    assert usage.completion_tokens_details.accepted_prediction_tokens == usage.speculation.accepted


def test_a_prompt_that_was_seen_is_cached(client: Any) -> None:
    prompt = "a prompt that nothing else in these tests begins with, long enough for several blocks"
    for _ in range(2):
        usage = client.completions.create(prompt=prompt, max_tokens=1).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    other = client.completions.create(prompt=prompt, max_tokens=1, cache_salt=secrets.token_hex(8))
    assert other.usage.prompt_tokens_details.cached_tokens == 0


def test_embeddings_are_the_numbers_of_the_wire(client: Any, real: RealServer) -> None:
    texts = ["a cat", "a dog"]
    found = client.embeddings.create(input=texts)
    raw = httpx.post(f"{real.url}/v1/embeddings", json={"input": texts}, timeout=30).json()
    assert [each.embedding for each in found] == [array("f", item["embedding"]) for item in raw["data"]]
    assert found.data[0].embedding != found.data[1].embedding
    assert sum(value * value for value in found.data[0].embedding) == pytest.approx(1.0, abs=1e-5)
    short = client.embeddings.create(input=texts[0], dimensions=8, encoding_format="float")
    assert len(short.data[0].embedding) == 8
    assert short.warnings[0].param == "dimensions"
    with pytest.raises(BadRequestError, match="dimensions"):
        client.embeddings.create(input=texts, dimensions=0)


def test_a_stored_response_is_found_gone_on_from_and_forgotten(client: Any) -> None:
    first = client.responses.create(input="tell me", max_output_tokens=8, seed=1, store=True)
    found = client.responses.retrieve(first.id)
    assert found == first
    second = client.responses.create(
        input="and?", previous_response_id=first.id, max_output_tokens=8, store=True, instructions="be short"
    )
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    for response in (first, second):
        client.responses.delete(response.id)
    with pytest.raises(NotFoundError, match="no response"):
        client.responses.retrieve(first.id)
    with pytest.raises(NotFoundError, match="no response"):
        client.responses.delete(first.id)


def test_a_rendered_conversation_is_what_is_tokenised(client: Any) -> None:
    rendered = client.chat.render(messages=HELLO)
    assert rendered.prompt == "[user]tell me\n[assistant]"
    tokens = client.tokenize(messages=HELLO, return_token_strs=True)
    assert (tokens.token_ids, tokens.count) == (rendered.token_ids, rendered.count)
    assert "".join(tokens.token_strs) == client.detokenize(tokens.token_ids) == rendered.prompt
    answer = client.chat.create(messages=HELLO, max_tokens=1, return_token_ids=True)
    assert answer.prompt_token_ids == rendered.token_ids


def test_structured_answers_in_both_forms(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    options: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"structured_outputs": {"json": schema}},
    ]
    for option in options:
        assert json.loads(client.chat.create(messages=HELLO, max_tokens=100, **option).text)["a"] in (1, 2)


def test_a_lookup_says_what_a_request_then_finds(client: Any) -> None:
    salt, text = secrets.token_hex(8), "the first words of it are shared, and so"
    lookup = client.cache.lookup(prompt=text, cache_salt=salt)
    assert (lookup.cached_tokens, lookup.end.reason) == (0, "never_seen")
    client.completions.create(prompt=text, cache_salt=salt, max_tokens=1)
    lookup = client.cache.lookup(prompt=text, cache_salt=salt)
    assert (lookup.end.reason, lookup.cached_tokens) == ("end_of_prompt", lookup.prompt_tokens - 1)
    other = text.replace("words", "words!")
    lookup = client.cache.lookup(prompt=other, cache_salt=salt)
    assert (lookup.end.reason, lookup.end.position) == ("different_token", other.index("!"))
    assert (lookup.end.cached.text, lookup.end.prompt.text) == (" ", "!")
    reply = client.completions.create(prompt=other, cache_salt=salt, max_tokens=1, cache_explain=True)
    [explanation] = reply.usage.cache
    assert (explanation.cached_tokens, explanation.end) == (lookup.cached_tokens, lookup.end)
    several = client.completions.create(prompt=["x", "y"], max_tokens=1, cache_explain=True)
    assert len(several.usage.cache) == 2
    assert len(client.responses.create(input="x", max_output_tokens=1, cache_explain=True).usage.cache) == 1
    rendered = client.chat.render(messages=HELLO)
    found = client.cache.lookup(messages=HELLO, cache_salt=salt)
    assert found.prompt_tokens == rendered.count


def test_a_distribution_is_what_logprobs_show_a_part_of(client: Any) -> None:
    distribution = client.distribution(prompt="tell me", priority=1, top_logprobs=3)
    likeliest = [(token.token_id, token.logprob) for token in distribution.top_logprobs]
    assert likeliest == list(distribution.top(3))
    assert distribution.top_logprobs[0].bytes == (distribution.top(1)[0][0],)
    assert len(distribution.logprobs) == distribution.vocab_size == 256
    greedy: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "logprobs": 1, "return_token_ids": True}
    reply = client.completions.create(prompt="tell me", **greedy)
    [(token_id, logprob)] = distribution.top(1)
    assert (token_id,) == reply.choices[0].token_ids
    assert array("f", reply.choices[0].logprobs.token_logprobs) == array("f", [logprob])
    assert distribution.usage.prompt_tokens == 7


def test_attention_of_each_position_adds_up_to_one(client: Any) -> None:
    found = client.attention(prompt="tell me", layer=1)
    assert "".join(token.text for token in found.tokens) == "tell me"
    assert (found.num_heads, found.layer) == (len(found.attention), 1)
    for head in found.attention:
        assert [len(weights) for weights in head] == list(range(1, 8))
        assert [sum(weights) for weights in head] == pytest.approx([1.0] * 7, abs=1e-3)


COMMON: dict[str, Any] = {
    "min_tokens": 1,
    "seed": 1,
    "temperature": 0.9,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.9,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {5: 1.0},
    "bad_words": ["x"],
    "stop": ["zz"],
    "stop_token_ids": [3],
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": True,
    "user": "u",
    "priority": 1,
    "max_queue_ms": 60_000,
    "deadline_ms": 60_000,
    "speculation": {"mode": "ngram", "k": 2},
    "cache_salt": "s",
}
MORE: dict[str, Any] = {"n": 1, "return_token_ids": True, "return_provenance": True, "prompt_logprobs": 1}
CHAT: dict[str, Any] = {
    "max_completion_tokens": 2,
    "logprobs": True,
    "top_logprobs": 1,
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "add_generation_prompt": True,
    "prediction": {"type": "content", "content": "a"},
}
RESPONSES: dict[str, Any] = {
    "instructions": "b",
    "max_output_tokens": 2,
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "metadata": {"a": "b"},
    "store": False,
    "parallel_tool_calls": False,
}


def test_every_option_is_known_to_the_server(client: Any) -> None:
    """An option without effect would be a warning, which the header makes an error."""
    strict = client.with_options(extra_headers={"X-Strict": "1"})
    scores = {"logprobs": 1, "logprobs_mode": "raw", "echo": True, "best_of": 1}
    strict.completions.create(prompt="a", max_tokens=2, **COMMON, **MORE, **scores)
    strict.chat.create(messages=HELLO, **COMMON, **MORE, **CHAT)
    strict.responses.create(input="a", **COMMON, **RESPONSES)
    shared = ("cache_salt", "user", "priority", "max_queue_ms", "deadline_ms")
    embedding = {name: COMMON[name] for name in shared}
    strict.embeddings.create(input="a", **embedding)
    strict.tokenize(messages=HELLO, add_special_tokens=False, add_generation_prompt=False)
