"""Prompts of conversations, against `transformers`."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from engine.interface.errors import CheckpointError, RequestError
from server.text import ChatTemplate

SYSTEM = {"role": "system", "content": "You are terse."}
USER = {"role": "user", "content": "Wie heißt 東京 auf Englisch? 👩‍👩‍👧 <|im_end|> & <b>"}
ASSISTANT = {"role": "assistant", "content": "Tokyo.\n\n"}
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ASSISTANT, USER],
    "system and turns": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT],
    "empty content": [{"role": "user", "content": ""}],
    "many": [USER, ASSISTANT] * 20,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "description": "Grüße <x>", "parameters": {"a": [1, 2.5, None]}},
    }
]
OTHERS = {
    "blocks are trimmed": """
    {%- for message in messages %}
        {%- if not loop.first %}
            {{- '|' }}
        {%- endif %}
    {{ message.role | upper }}: {{ message['content'] | trim }}{{ eos_token }}
    {% endfor %}
    {% if add_generation_prompt %}
  ASSISTANT:
    {% endif %}
""",
    "tools": """{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson }}
{{ tool.function | tojson(indent=4) }}{% endfor %}{% else %}none{% endif %}{{ documents is none }}""",
    "namespace, macro, loop controls": """
{%- set ns = namespace(last=-1, text='') -%}
{%- macro show(m) -%}[{{ m.role ~ ':' ~ m.content | length }}]{%- endmacro -%}
{%- for m in messages[::-1] -%}
    {%- if m.role == 'system' -%}{%- break -%}{%- endif -%}
    {%- if loop.index0 is odd -%}{%- continue -%}{%- endif -%}
    {%- set ns.text = show(m) ~ ns.text -%}
    {%- set ns.last = loop.index -%}
{%- endfor -%}
{{ ns.text }}{{ ns.last }}""",
    "string methods": """
{%- for m in messages if m.content -%}
    {{ m.content.split('.')[0].strip().replace('e', '3') }}
    {{- '%s/%03d' % (m.role, loop.index) }}{{ '{:>4}'.format(loop.index) }}
    {%- for key, value in m.items() %} {{ key }}={{ value[:4] }}{% endfor %}
{%- endfor -%}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('+') }}""",
    "generation block": """
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content }}{% endgeneration %}
    {%- else %}
        {{- m.content }}
    {%- endif %}
{% endfor %}""",
    "literals": """
{%- set pairs = [('a', 1), ('b', [2, messages | length])] %}
{%- for k, v in pairs %}{{ k }}{{ v }}{% endfor %}
{{ {'n': messages | length, 'r': messages[0].role} }}{{ ([1] * 3 + [messages | length]) | sum }}
{{ -7 // 2 }}{{ 2 ** 10 }}{{ (1, messages[0].role) }}""",
    "captured text": """
{%- macro wrap(x) %}<{{ caller(x) }}>{% endmacro %}
{%- set block %}{% for i in range(3) %}{{ loop.cycle('x', 'y') }}{% endfor %}{% endset %}
{{- block | upper }}{% call(x) wrap('!') %}{{ x }}{{ messages | length }}{% endcall %}
{%- filter upper %}{{ messages[0].role }}{% endfilter %}""",
}


@pytest.fixture(scope="module")
def transformers_tokenizer():
    return PreTrainedTokenizerFast(
        tokenizer_object=ReferenceTokenizer(models.BPE()), bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_default_model(default_data, transformers_tokenizer, messages, add_generation_prompt):
    expected = transformers_tokenizer.apply_chat_template(
        messages,
        chat_template=default_data.chat_template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )
    template = ChatTemplate(default_data.chat_template)
    assert template.render(messages, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("source", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
def test_what_templates_use(transformers_tokenizer, source, messages, tools):
    expected = transformers_tokenizer.apply_chat_template(
        messages, chat_template=source, tools=tools, tokenize=False, add_generation_prompt=True
    )
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    assert template.render(messages, **({} if tools is None else {"tools": tools})) == expected


def test_default_prompt_to_the_letter(default_data):
    assert ChatTemplate(default_data.chat_template).render([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_variables_reach_the_template():
    template = ChatTemplate("{{ enable_thinking }}{{ missing is defined }}")
    assert template.render([], variables={"enable_thinking": False}) == "FalseFalse"


def test_today():
    assert re.fullmatch(
        r"\d\d [A-Z][a-z]{2} 20\d\d", ChatTemplate("{{ strftime_now('%d %b %Y') }}").render([])
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ unclosed",
        "{{ 'a' | no_such_filter }}",
        "{% include 'other' %}",
        "{% extends messages[0].content %}",
        "(" * 10 + "{{" + "(" * 50_000,
        "x" * 300_000,
    ],
)
def test_source_that_does_not_compile(source):
    with pytest.raises(CheckpointError, match="the chat template"):
        ChatTemplate(source)


def test_a_template_can_refuse_messages():
    template = ChatTemplate("{{ raise_exception('roles must alternate, not ' ~ messages[0].role) }}")
    with pytest.raises(RequestError, match="refuses the messages: roles must alternate, not user") as caught:
        template.render([USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ messages[7].role }}", "no element 7"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ no_such_function() }}", "undefined"),
        ("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}", "recursion"),
    ],
)
def test_a_template_that_fails_on_messages(source, message):
    with pytest.raises(RequestError, match=message) as caught:
        ChatTemplate(source).render([USER])
    assert caught.value.param == "messages"


def test_error_texts_are_short_and_can_be_sent():
    with pytest.raises(RequestError) as caught:
        ChatTemplate("{{ raise_exception(messages[0].content) }}").render([{"content": "\ud800" * 5000}])
    assert len(str(caught.value).encode()) < 400


def test_shared_between_threads(default_data):
    template = ChatTemplate(default_data.chat_template)
    conversations = [[{"role": "user", "content": str(i) * 50}] for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(template.render, conversations)) == list(map(template.render, conversations))
