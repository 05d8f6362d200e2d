"""The fallback for chat templates that know nothing of tools: functions, calls and results as plain messages.

It shows the model the hermes format, which most models have met in training.
"""

import json
from collections.abc import Mapping, Sequence

_INTRODUCTION = """You can call functions. These are their signatures, one JSON object on each line:
<tools>
{tools}
</tools>
To call a function, write its name and arguments as a JSON object between tags:
<tool_call>
{{"name": "name of the function", "arguments": {{"name of the argument": "its value"}}}}
</tool_call>"""


def with_tools_as_text(
    messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]]
) -> list[dict[str, object]]:
    """Return the messages with the tools in the system message, calls and their results as text."""
    plain: list[dict[str, object]] = []
    for message in messages:
        if message["role"] == "tool":
            _add_result(plain, str(message["content"]))
        elif message.get("tool_calls"):
            plain.append({"role": message["role"], "content": _with_calls(message)})
        else:
            plain.append(dict(message))
    return _introduce(plain, tools) if tools else plain


def _introduce(
    messages: list[dict[str, object]], tools: Sequence[Mapping[str, object]]
) -> list[dict[str, object]]:
    introduction = _INTRODUCTION.format(
        tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    )
    if messages and messages[0]["role"] == "system":
        content = f"{messages[0]['content']}\n\n{introduction}"
        return [{**messages[0], "content": content}, *messages[1:]]
    return [{"role": "system", "content": introduction}, *messages]


def _add_result(messages: list[dict[str, object]], content: str) -> None:
    """Add a result, to the user's turn that holds the results before it if there is one."""
    result = f"<tool_response>\n{content}\n</tool_response>"
    last = messages[-1] if messages else None
    if last is not None and last["role"] == "user" and str(last["content"]).endswith("</tool_response>"):
        last["content"] = f"{last['content']}\n{result}"
    else:
        messages.append({"role": "user", "content": result})


def _with_calls(message: Mapping[str, object]) -> str:
    calls = message["tool_calls"]
    assert isinstance(calls, list)
    texts = [str(message["content"])] if message["content"] else []
    for call in calls:
        function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        texts.append(f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>")
    return "\n".join(texts)
