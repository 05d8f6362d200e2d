"""JSON schemas on the real default model: every sampled answer parses and validates."""

import json

import jsonschema
import pytest

from engine.interface.config import EngineConfig
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.outputs import FinishReason
from engine.loading.loader import build_engine
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer
from tests.tiny import generation, run_to_end

NAME = {"type": "string", "maxLength": 30}
SCHEMAS = {
    "a person": {
        "type": "object",
        "properties": {"name": NAME, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "a movie review": {
        "type": "object",
        "properties": {
            "title": NAME,
            "sentiment": {"enum": ["positive", "negative", "mixed"]},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        },
        "required": ["title", "sentiment", "stars"],
        "additionalProperties": False,
    },
    "a calendar event": {
        "type": "object",
        "properties": {
            "title": NAME,
            "date": {"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9])$"},
            "attendees": {"type": "array", "items": NAME, "minItems": 1, "maxItems": 3},
        },
        "required": ["title", "date", "attendees"],
        "additionalProperties": False,
    },
    "a call of the weather function": {
        "type": "object",
        "properties": {
            "function": {"const": "get_weather"},
            "arguments": {
                "type": "object",
                "properties": {"city": NAME, "unit": {"enum": ["celsius", "fahrenheit"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
        "required": ["function", "arguments"],
        "additionalProperties": False,
    },
    "a tree of headings": {
        "$ref": "#/$defs/heading",
        "$defs": {
            "heading": {
                "type": "object",
                "properties": {
                    "text": NAME,
                    "children": {"type": "array", "items": {"$ref": "#/$defs/heading"}, "maxItems": 2},
                },
                "required": ["text"],
                "additionalProperties": False,
            }
        },
    },
}
ANSWERS_EACH = 20


@pytest.fixture(scope="module")
def engine(default_checkpoint):
    config = EngineConfig(device="cpu", max_model_len=512, kv_cache_memory=2**28)
    made = build_engine(default_checkpoint, config).engine
    yield made
    made.close()


@pytest.mark.parametrize("subject", SCHEMAS)
def test_every_answer_parses_and_validates(subject, engine, default_checkpoint):
    tokenizer = Tokenizer(default_checkpoint.tokenizer)
    template = ChatTemplate(default_checkpoint.tokenizer.chat_template)
    prompt = tokenizer.encode(
        template.render([{"role": "user", "content": f"Write {subject} as JSON."}]), add_bos=False
    )
    grammar = GrammarSpec(kind=GrammarKind.JSON_SCHEMA, source=json.dumps(SCHEMAS[subject]))
    requests = [
        engine.add_request(generation(prompt, grammar=grammar, temperature=1.0, seed=seed, max_tokens=120))
        for seed in range(ANSWERS_EACH)
    ]
    run_to_end(engine)
    num_whole = 0
    for request in requests:
        if request.finish_reason is FinishReason.LENGTH:
            continue  # cut by max_tokens, as it may be
        answer = tokenizer.decode(request.token_ids[request.num_prompt_tokens :])
        jsonschema.validate(json.loads(answer), SCHEMAS[subject])
        num_whole += 1
    print(f"{subject}: {num_whole} of {ANSWERS_EACH} whole")
    assert num_whole >= ANSWERS_EACH // 4
