"""response_format and structured_outputs: what they become, and what they may not be."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from engine.interface.cancellation import Cancellation
from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from tests.fakes import FakeEngine
from tests.server.harness import RunningServer, serving

SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}}
SCHEMA_SOURCE = '{"type":"object","properties":{"é":{"type":"integer"}}}'
HELLO = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine()) as running:
        yield running


def post(server: RunningServer, **body: object) -> Any:
    return server.client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 3, **body})


def json_schema(**members: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": members}


@pytest.mark.parametrize(
    ("body", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, GrammarKind.JSON_OBJECT, ""),
        (
            {"response_format": json_schema(name="a", schema=SCHEMA, strict=True, description="d")},
            GrammarKind.JSON_SCHEMA,
            SCHEMA_SOURCE,
        ),
        (
            {"response_format": json_schema(schema=SCHEMA, strict=None)},
            GrammarKind.JSON_SCHEMA,
            SCHEMA_SOURCE,
        ),
        ({"structured_outputs": {"json": SCHEMA}}, GrammarKind.JSON_SCHEMA, SCHEMA_SOURCE),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, GrammarKind.JSON_SCHEMA, SCHEMA_SOURCE),
        ({"structured_outputs": {"json_object": True}}, GrammarKind.JSON_OBJECT, ""),
        ({"structured_outputs": {"regex": "[a-z]+", "json": None}}, GrammarKind.REGEX, "[a-z]+"),
        ({"structured_outputs": {"choice": ["ja", "né"]}}, GrammarKind.CHOICE, '["ja", "né"]'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, GrammarKind.LARK, 'start: "a"'),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}},
            GrammarKind.REGEX,
            "a",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_each_form_reaches_the_engine(
    server: RunningServer, path: str, body: dict[str, object], kind: GrammarKind, source: str
) -> None:
    prompt = {"messages": HELLO} if "chat" in path else {"prompt": "x"}
    response = server.client.post(path, json={**prompt, "max_tokens": 3, **body})
    assert response.status_code == 200
    assert "warnings" not in response.json()
    assert server.engine.requests[-1].params.grammar == GrammarSpec(kind=kind, source=source)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("json_object", "response_format"),
        ([], "response_format"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": ["json_object"]}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": "{}"}, "response_format.json_schema"),
        (json_schema(name="a"), "response_format.json_schema.schema"),
        (json_schema(schema="{}"), "response_format.json_schema.schema"),
        (json_schema(schema=[]), "response_format.json_schema.schema"),
        (json_schema(schema={}, name=5), "response_format.json_schema.name"),
        (json_schema(schema={}, strict=1), "response_format.json_schema.strict"),
        (json_schema(schema={"enum": ["x" * 70_000]}), "response_format.json_schema"),
        (json_schema(schema={"enum": ["\x00" * 20_000]}), "response_format.json_schema"),
    ],
)
def test_bad_response_formats_are_named(server: RunningServer, value: object, param: str) -> None:
    response = post(server, response_format=value)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("a", "structured_outputs"),
        ({}, "structured_outputs"),
        ({"regex": None}, "structured_outputs"),
        ({"json_object": False}, "structured_outputs"),
        ({"regex": "a", "choice": ["a"]}, "structured_outputs"),
        ({"json": 5}, "structured_outputs.json"),
        ({"json": "{"}, "structured_outputs.json"),
        ({"json": "[]"}, "structured_outputs.json"),
        ({"json": '{"a": NaN}'}, "structured_outputs.json"),
        ({"json": '{"a": 1, "a": 2}'}, "structured_outputs.json"),
        ({"json": '{"a": "\\ud800"}'}, "structured_outputs.json"),
        ({"json": "[" * 20_000}, "structured_outputs.json"),
        ({"json": '{"a": 1e400}'}, "structured_outputs.json"),
        ({"json": " " * 70_000}, "structured_outputs.json"),
        ({"json_object": 1}, "structured_outputs.json_object"),
        ({"regex": ""}, "structured_outputs.regex"),
        ({"regex": ["a"]}, "structured_outputs.regex"),
        ({"regex": "a" * 70_000}, "structured_outputs.regex"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"choice": "ab"}, "structured_outputs.choice"),
        ({"choice": ["a", ""]}, "structured_outputs.choice"),
        ({"choice": ["a", 1]}, "structured_outputs.choice"),
        ({"choice": ["a"] * 1025}, "structured_outputs.choice"),
        ({"choice": ["a" * 1000] * 100}, "structured_outputs.choice"),
        ({"grammar": 5}, "structured_outputs.grammar"),
    ],
)
def test_bad_structured_outputs_are_named(server: RunningServer, value: object, param: str) -> None:
    response = post(server, structured_outputs=value)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert len(response.content) < 1000


def test_a_deep_schema_is_no_crash(server: RunningServer) -> None:
    body = '{"messages": [{"role": "user", "content": "x"}], "structured_outputs": {"json": %s}}'
    for depth in (100, 300, 900):
        nested = '{"a":' * depth + "1" + "}" * depth
        headers = {"content-type": "application/json"}
        content = (body % nested).encode()
        response = server.client.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code in (200, 400)


def test_both_fields_at_once_are_refused(server: RunningServer) -> None:
    response = post(server, response_format={"type": "json_object"}, structured_outputs={"json_object": True})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "structured_outputs"


def test_unknown_members_are_warned_about(server: RunningServer) -> None:
    warnings = post(
        server,
        response_format={"type": "text", "mood": {}, "json_schema": None},
        structured_outputs={"regex": "a", "whitespace_pattern": "b"},
    ).json()["warnings"]
    assert [warning["param"] for warning in warnings] == [
        "response_format.mood",
        "structured_outputs.whitespace_pattern",
    ]


@pytest.mark.parametrize(
    "body", [{"response_format": json_schema(schema=SCHEMA)}, {"structured_outputs": {"json": SCHEMA}}]
)
def test_what_does_not_compile_is_a_400_that_names_the_field(body: dict[str, object]) -> None:
    asked: list[GrammarSpec] = []

    def refuse(spec: GrammarSpec, _: Cancellation) -> None:
        asked.append(spec)
        raise RequestError("the schema is too complex", param="response_format")

    with serving(FakeEngine(compile_grammar=refuse)) as server:
        for _ in range(2):
            response = post(server, **body)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == next(iter(body))
            assert response.json()["error"]["message"] == "the schema is too complex"
        assert len(asked) == 1, "a refusal is remembered"
        assert not server.engine.requests


@pytest.mark.parametrize("as_text", [False, True])
def test_a_number_that_would_lose_digits_on_the_way_is_refused(server: RunningServer, as_text: bool) -> None:
    schema = '{"type": "object", "properties": {"x": {"const": 1.00000000000000000001}}}'
    value = json.dumps(schema) if as_text else schema
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "structured_outputs": {{"json": {value}}}}}'
    answer = server.client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert "1.00000000000000000001, which has more digits than a double" in answer.json()["error"]["message"]


def test_numbers_that_keep_their_digits_reach_the_engine(server: RunningServer) -> None:
    schema = {"enum": [0.1, 1.5e300, 12345678901234567890123, 0.30000000000000004], "minimum": -(2**63)}
    assert (
        post(server, structured_outputs={"json": schema}, temperature=0.12345678901234567890).status_code
        == 200
    )
    assert json.loads(server.engine.requests[-1].params.grammar.source) == schema
