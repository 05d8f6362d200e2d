"""Grammars through the whole engine: answers that match, whatever else the request asks for."""

import json
import re
from dataclasses import replace

import pytest

from engine.checkpoint.checkpoint import TokenizerData
from engine.checkpoint.vocabulary import printable_bytes
from engine.interface.config import EngineConfig
from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.outputs import FinishReason
from engine.loading.loader import build_engine
from tests.tiny import (
    LLAMA,
    generate,
    generation,
    random_checkpoint,
    run_to_end,
    scripted_engine,
    tiny_engine,
)

END = 255  # a byte that no text has


def byte_engine(**settings):
    """A random model whose 256 tokens are the bytes, the last one ending answers."""
    alphabet = {byte: character for character, byte in printable_bytes().items()}
    tokens = (*(alphabet[byte] for byte in range(255)), "<end>")
    checkpoint = replace(
        random_checkpoint(LLAMA),
        tokenizer=TokenizerData(
            tokens=tokens, merges=(), special_token_ids=frozenset({END}), eos_token_id=END
        ),
        stop_token_ids=frozenset({END}),
    )
    config = {"device": "cpu", "dtype": "float32", "kv_cache_memory": 2**24} | settings
    return build_engine(checkpoint, EngineConfig(**config)).engine


@pytest.fixture(scope="module")
def engine():
    made = byte_engine()
    yield made
    made.close()


def asking(kind, source="", **params):
    spec = GrammarSpec(kind=kind, source=source)
    return generation(b"Answer: ", grammar=spec, **{"temperature": 1.0, "max_tokens": 200} | params)


def text(answer):
    return bytes(token for token in answer if token != END).decode()


def test_every_sampled_answer_matches_its_regular_expression(engine):
    pattern = r"[a-c]{3,9}-(yes|no)"
    answers = generate(
        engine, *(asking(GrammarKind.REGEX, pattern, seed=seed, temperature=2.0) for seed in range(12))
    )
    assert all(re.fullmatch(pattern, text(answer)) for answer in answers)
    assert len({tuple(answer) for answer in answers}) > 1


def test_choices_greedy_and_sampled_alone_and_together(engine):
    words = ["red", "green", "greenish"]
    requests = [
        asking(GrammarKind.CHOICE, json.dumps(words), temperature=temperature, seed=7, choice=choice)
        for temperature in (0.0, 1.5)
        for choice in range(3)
    ]
    together = generate(engine, *requests)
    assert [generate(engine, request)[0] for request in requests] == together
    assert {text(answer) for answer in together} <= set(words)


def test_an_answer_ends_where_its_grammar_does(engine):
    request = engine.add_request(asking(GrammarKind.CHOICE, '["ab"]', ignore_eos=True))
    run_to_end(engine)
    assert bytes(request.token_ids[8:]) == b"ab"
    assert request.finish_reason is FinishReason.STOP


def test_json_objects_parse_in_small_blocks_after_preemption_with_logprobs():
    engine = byte_engine(kv_cache_memory=16 * 2 * 2 * 2 * 16 * 4 * 14, max_model_len=220)
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    source = json.dumps(schema)
    requests = [
        engine.add_request(asking(GrammarKind.JSON_SCHEMA, source, seed=seed, logprobs=3))
        for seed in range(6)
    ]
    long_one = engine.add_request(generation(b"x", max_tokens=200, ignore_eos=True))
    run_to_end(engine)
    engine.close()
    assert long_one.finish_reason is FinishReason.LENGTH
    for request in requests:
        value = json.loads(text(request.token_ids[8:]))
        assert value.keys() == {"n", "ok"}
        assert 0 <= value["n"] <= 99


def test_penalties_bias_and_min_tokens_never_break_a_grammar(engine):
    request = asking(
        GrammarKind.REGEX,
        "(ab){2,40}",
        repetition_penalty=2.0,
        logit_bias={ord("a"): -100.0, ord("z"): 100.0},
        min_tokens=20,
        allowed_token_ids=frozenset(b"az"),
        banned_sequences=frozenset({tuple(b"ab")}),
    )
    [answer] = generate(engine, request)
    assert re.fullmatch("(ab){2,40}", text(answer))


def test_max_tokens_may_cut_it(engine):
    request = engine.add_request(asking(GrammarKind.REGEX, "a{50}", max_tokens=5))
    run_to_end(engine)
    assert bytes(request.token_ids[8:]) == b"aaaaa"
    assert request.finish_reason is FinishReason.LENGTH


class Failing:
    """A grammar whose limits trip at the second token."""

    def __init__(self):
        self.num_tokens = 0
        self.error = None

    def start(self):
        return self

    def compile(self, _spec, *, cancellation=None):
        return self

    def close(self):
        pass

    @property
    def is_complete(self):
        return self.error is not None

    def token_bitmask(self):
        return None

    def accept(self, _token_id):
        self.num_tokens += 1
        if self.num_tokens == 2:
            self.error = "too complex"


def test_a_grammar_that_gives_up_cuts_the_answer_and_says_so(caplog):
    engine = scripted_engine(grammar_source=Failing())
    request = engine.add_request(generation([1], grammar=GrammarSpec(kind=GrammarKind.JSON_OBJECT)))
    run_to_end(engine)
    assert request.finish_reason is FinishReason.LENGTH
    assert request.num_output_tokens == 2
    assert "too complex" in caplog.text


def test_an_engine_without_grammars_refuses_them():
    with pytest.raises(RequestError, match="cannot constrain"):
        scripted_engine().add_request(generation([1], grammar=GrammarSpec(kind=GrammarKind.JSON_OBJECT)))


def test_a_grammar_that_cannot_be_compiled_is_refused_and_harms_nobody(engine):
    with pytest.raises(RequestError):
        engine.add_request(asking(GrammarKind.JSON_SCHEMA, '{"type": "nonsense"}'))
    assert not engine.has_work
    assert generate(engine, generation(b"hello", max_tokens=2)) == generate(
        tiny_engine().engine, generation(b"hello", max_tokens=2)
    )
