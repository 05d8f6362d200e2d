"""What is said and what is called, in every format, however the answer is cut into pieces."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.answers import FORMATS, CallDelta, choose_format

NAMES = ("weather", "now", "pkg.search")


def read(name, pieces, *, in_call=False, names=NAMES):
    """Return the text and the calls as (name, arguments) of an answer that comes in these pieces."""
    parser = FORMATS[name].new_parser(names, in_call=in_call)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    text = "".join([part for part in parts if isinstance(part, str)])
    calls, ids = [], []
    for part in parts:
        if isinstance(part, CallDelta):
            if part.name is not None:
                assert part.index == len(calls)
                ids.append(part.id)
                calls.append([part.name, ""])
            assert part.index == len(calls) - 1
            calls[-1][1] += part.arguments
    assert len(set(ids)) == len(calls) == parser.num_calls
    return text, [tuple(call) for call in calls]


def cut(text, rng):
    places = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randrange(6))))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


PARIS = '{"city": "Paris \\"}] \\u00e9", "days": [1, {"a": null}]}'
HERMES_CALL = f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>'
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'

ANSWERS = [
    ("hermes", "", "", []),
    ("hermes", "Hello.\n\n", "Hello.\n\n", []),
    ("hermes", "a < b, <tool, <tool_cal", "a < b, <tool, <tool_cal", []),
    ("hermes", HERMES_CALL, "", [("weather", PARIS)]),
    (
        "hermes",
        f"Let me see.\n{HERMES_CALL}\n{NOW_CALL}\n",
        "Let me see.",
        [("weather", PARIS), ("now", "{}")],
    ),
    ("hermes", f"{NOW_CALL}\n\nDone  ", "Done", [("now", "{}")]),
    ("hermes", f"a {NOW_CALL} b {NOW_CALL}", "a b", [("now", "{}"), ("now", "{}")]),
    (
        "hermes",
        '<tool_call>{"arguments": {"x": 1}, "id": 7, "name": "now"}</tool_call>',
        "",
        [("now", '{"x": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    (
        "hermes",
        '<tool_call>{"name": "now", "arguments": "{\\"x\\": 1}"}</tool_call>',
        "",
        [("now", '{"x": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "now", "parameters": {"x": 1}}</tool_call>', "", [("now", '{"x": 1}')]),
    (
        "hermes",
        '<tool_call>[{"name": "now", "arguments": {}}, {"name": "weather", "arguments": {"a": 1}}]'
        "</tool_call>",
        "",
        [("now", "{}"), ("weather", '{"a": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}}}\n</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1', "", [("now", '{"a": 1')]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}} and so on', "and so on", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None, []),
    ("hermes", "<tool_call>weather(Paris)</tool_call>", None, []),
    (
        "hermes",
        '<tool_call>{"arguments": {"a": 1}, "parameters": {"b": 2}, "name": "now"}</tool_call>',
        None,
        [],
    ),
    ("hermes", '<tool_call>{"name": "now"', "", [("now", "")]),
    ("hermes", '<tool_call>{"name": "no', None, []),
    ("hermes", "<tool_call>", None, []),
    ("hermes", f"<tool_call> no {NOW_CALL}", "<tool_call> no", [("now", "{}")]),
    (
        "llama3_json",
        '{"name": "weather", "parameters": {"city": "Paris"}}',
        "",
        [("weather", '{"city": "Paris"}')],
    ),
    ("llama3_json", '<|python_tag|>{"name": "now", "parameters": {}}', "", [("now", "{}")]),
    (
        "llama3_json",
        '{"name": "now", "parameters": {}}; {"name": "weather", "parameters": {"a": "b"}}',
        "",
        [("now", "{}"), ("weather", '{"a": "b"}')],
    ),
    ("llama3_json", 'It is {"name": "now", "parameters": {}}', None, []),
    ("llama3_json", '{"name": "nobody", "parameters": {}} text', None, []),
    ("llama3_json", '{"title": "A JSON answer"}', None, []),
    ("llama3_json", " \n", None, []),
    (
        "pythonic",
        '[weather(city="Paris", days=[1, 2]), now()]',
        "",
        [("weather", '{"city": "Paris", "days": [1, 2]}'), ("now", "{}")],
    ),
    (
        "pythonic",
        '[pkg.search(q="[x]", deep=True, n=None)]',
        "",
        [("pkg.search", '{"q": "[x]", "deep": true, "n": null}')],
    ),
    ("pythonic", "[1, 2, 3] are numbers", None, []),
    ("pythonic", "[unknown()]", None, []),
    ("pythonic", "[weather(city=__import__('os'))]", None, []),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]',
        "",
        [("weather", '{"city": "Paris"}')],
    ),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]',
        "",
        [("now", "{}")] * 2,
    ),
    (
        "mistral",
        'Sure.[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now{}',
        "Sure.",
        [("weather", '{"city": "Paris"}'), ("now", "{}")],
    ),
    ("mistral", '[TOOL_CALLS]now[CALL_ID]abc[ARGS]{"a": {"b": 1}}', "", [("now", '{"a": {"b": 1}}')]),
    ("mistral", "[TOOL_CALLS]nobody[ARGS]{}", None, []),
]


@pytest.mark.parametrize(("name", "answer", "text", "calls"), ANSWERS)
def test_an_answer_is_split_alike_however_it_is_cut(name, answer, text, calls):
    """`text` None: nothing of the answer is a call, so all of it is text."""
    expected = (answer if text is None else text, calls)
    assert read(name, [answer]) == expected
    assert read(name, list(answer)) == expected
    rng = random.Random(len(answer))
    for _ in range(30):
        assert read(name, cut(answer, rng)) == expected


def test_an_answer_that_begins_behind_the_mark():
    answer = '[{"name": "now", "arguments": {}}]'
    assert read("mistral", list(answer), in_call=True) == ("", [("now", "{}")])


def test_arguments_are_given_out_as_they_come():
    parser = FORMATS["hermes"].new_parser(NAMES)
    assert parser.push('<tool_call>{"name": "wea') == []
    [begun] = parser.push('ther"')
    assert (begun.name, begun.arguments, begun.id[:5], len(begun.id)) == ("weather", "", "call_", 29)
    assert "".join(p.arguments for p in parser.push(', "arguments": {"city": "Pa')) == '{"city": "Pa'
    assert not parser.is_between_calls
    assert "".join(p.arguments for p in parser.push('ris"}}</tool_')) == 'ris"}'
    assert not parser.is_between_calls
    parser.push("call>")
    assert parser.is_between_calls


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_any_text_is_read_alike_in_one_piece_and_in_many(name, data):
    marks = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        '{"name": "now"',
        "}",
        "]",
    ]
    marks += ['"arguments": {}', ", ", "[", "{", "now", "now()", ";", " ", "\n", "x", '"', "\\", "(", ")"]
    pieces = data.draw(st.lists(st.sampled_from(marks), max_size=12))
    assert read(name, pieces) == read(name, ["".join(pieces)])
    text, calls = read(name, pieces)
    if not calls:
        assert text == "".join(pieces), "nothing is lost"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("<tool_call>", "hermes"),
        ("<|python_tag|>", "llama3_json"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
        ("{% for m in messages %}{% endfor %}", "hermes"),
    ],
)
def test_the_format_is_the_templates(template, name):
    assert choose_format(template).name == name


def test_ids_have_the_shape_that_a_template_wants():
    assert len(FORMATS["mistral"].new_id()) == 9
    assert FORMATS["mistral"].new_id().isalnum()
