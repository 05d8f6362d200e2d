# ruff: noqa: E501 - templates are one line where they print one
"""Tools, calls and results through the templates of the families, against `transformers`.

The templates say what those of the families say (their marks, order and white space), in words of our own.
"""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from server.answers import choose_format
from server.api.fields import parse_messages
from server.api.prompts import render_chat
from server.api.tool_fields import parse_tools
from server.text import ChatTemplate
from tests.fakes import FakeEngine
from tests.server.harness import served_model

QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nSignatures stand within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nAnswer with:\\n<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
        {{- '<|im_start|>assistant' }}
        {%- if thought and loop.last %}{{- '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>' }}{%- endif %}
        {%- if content %}{{- '\\n' + content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
LLAMA = """
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- set first = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nAnswer with {"name": name, "parameters": dictionary}.\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception("one call at once") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson if message.content is mapping else message.content }}{{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}{{- raise_exception("ids have nine characters") }}{%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""
HERMES = """
{{- bos_token }}{{- '<|im_start|>system\\nYou call functions. <tools>' }}
{%- for tool in tools or [] %}{{- tool.function | tojson if tool.function is defined else tool | tojson }}{{- '\\n' if not loop.last }}{%- endfor %}
{{- ' </tools> <tool_call>\\n{"name": <function-name>, "arguments": <args-dict>}\\n</tool_call><|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role in ('user', 'system') or (message.role == 'assistant' and message.tool_calls is not defined) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>tool\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
TEMPLATES = {"qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL, "hermes": HERMES}
FORMATS = {"qwen": "hermes", "llama": "llama3_json", "mistral": "mistral", "hermes": "hermes"}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather, "now" & <here>: 東京',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": "Wie wird das Wetter in 東京?"}


def call(number, name="get_weather", **arguments):
    return {"id": f"abcdefgh{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(number, content):
    return {"role": "tool", "tool_call_id": f"abcdefgh{number}", "content": content}


def calling(*calls):
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


CONVERSATIONS = {
    "question": [USER],
    "system": [SYSTEM, USER],
    "call": [SYSTEM, USER, calling(call(1, city="東京", days=2))],
    "result": [USER, calling(call(1, city='a "b" \\ é', unit=None)), result(1, '{"t": 21.5}')],
    "answer": [
        USER,
        calling(call(1, city="x")),
        result(1, "sunny"),
        {"role": "assistant", "content": "Sunny."},
        USER,
    ],
}
MORE = {
    "parallel": [USER, calling(call(1, city="x"), call(2, "now")), result(1, "sunny"), result(2, "noon")],
    "thought": [USER, {"role": "assistant", "reasoning_content": "hm", "content": "Sunny."}],
}


def as_openai_sends(messages):
    """Arguments are JSON text on the wire, and content is null beside calls."""
    sent = json.loads(json.dumps(messages))
    for message in sent:
        for one in message.get("tool_calls", []):
            one["function"]["arguments"] = json.dumps(one["function"]["arguments"], ensure_ascii=False)
            message["content"] = None
    return sent


@pytest.fixture(scope="module")
def reference():
    return PreTrainedTokenizerFast(
        tokenizer_object=ReferenceTokenizer(models.BPE()), bos_token="<s>", eos_token="</s>"
    )


CASES = [(family, name) for family in TEMPLATES for name in CONVERSATIONS]
CASES += [(family, "parallel") for family in ("qwen", "mistral", "hermes")] + [("qwen", "thought")]


@pytest.mark.parametrize(("family", "name"), CASES, ids=["-".join(case) for case in CASES])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
def test_tools_calls_and_results_are_rendered_as_transformers_does(reference, family, name, tools):
    messages = (CONVERSATIONS | MORE)[name]
    expected = reference.apply_chat_template(
        messages, chat_template=TEMPLATES[family], tools=tools, tokenize=False, add_generation_prompt=True
    )
    template = ChatTemplate(TEMPLATES[family], bos_token="<s>", eos_token="</s>")
    model = replace(served_model(FakeEngine()), chat_template=template)
    chat = render_chat(
        parse_messages(as_openai_sends(messages)),
        model,
        add_generation_prompt=True,
        tools=parse_tools(tools or []).tools,
    )
    text = chat.text.translate({ord(stand_in): written for stand_in, written in chat.stand_ins.items()})
    assert text == expected


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_format_of_calls_is_known_by_the_template(family):
    assert choose_format(TEMPLATES[family]).name == FORMATS[family]
