"""Every Python example of the client's README runs against a server that speaks the contract."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

HEAD = {"id": "x-1", "created": 5, "model": "m", "warnings": [{"param": "a_field", "message": "not known"}]}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
}
BODIES: Mapping[str, Mapping[str, Any]] = {
    "/v1/models": {"data": [{"id": "m", "created": 1, "owned_by": "draftline"}]},
    "/tokenize": {"tokens": [1, 2], "count": 2, "max_model_len": 2048},
    "/detokenize": {"prompt": "Hello"},
    "/version": {"version": "1.2.3"},
    "/ready": {},
}


def choice(path: str, *, stream: bool) -> Mapping[str, Any]:
    if path == "/v1/completions":
        return {"index": 0, "text": " blue", "finish_reason": "length"}
    message = {"role": "assistant", "content": " blue"}
    return {"index": 0, "delta" if stream else "message": message, "finish_reason": "length"}


def reply(server: Any, request: Any) -> Any:
    if request.path in BODIES:
        return server.json(BODIES[request.path])
    if request.body.get("temperature") == 99.0:
        return server.error(400, "temperature must be between 0 and 2, got 99")
    stream = request.body.get("stream", False)
    body = {**HEAD, "choices": [choice(request.path, stream=stream)]}
    if not stream:
        return server.json({**body, "usage": USAGE})
    events = [body]
    if request.body.get("stream_options"):
        events.append({**HEAD, "choices": [], "usage": USAGE})
    frames = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return server.stream(*frames, b"data: [DONE]\n\n")


OUTPUTS = [
    " blue\n blue 5\n",
    " blue\n2 tokens, request req-7\n",
    " blue\n blue\n blue\n blue",
    "a_field: not known\nPromptTokensDetails(cached_tokens=1) None\n[]\n",
    "top_k: temperature must be between 0 and 2, got 99 (request req-7)\n",
    "1.2.3\n",
    "['m']\n(1, 2) 2 2048\nHello\n2\n",
]


@pytest.mark.parametrize(("example", "output"), list(zip(EXAMPLES, OUTPUTS, strict=True)))
def test_an_example_of_the_readme_runs(
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    example: str,
    output: str,
) -> None:
    monkeypatch.setenv("DRAFTLINE_BASE_URL", server.url)
    server.otherwise = lambda exchange: reply(server, server.requests[-1])(exchange)
    exec(compile(example, str(README), "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == output
    assert server.requests
