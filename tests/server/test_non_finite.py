"""A model whose values are not finite: one clear error for the request, and the server goes on."""

import json
from dataclasses import replace

import pytest

from engine.interface.outputs import FinishReason
from tests.fakes import FakeEngine, echo_seed, say
from tests.server.harness import serving


def script(request):
    """Break after two tokens where the prompt is `bad`, and in the second choice of two."""
    if bytes(request.prompt_token_ids) == b"bad" or request.choice == 1:
        return replace(
            say("ab") if request.params.max_tokens > 1 else say(""), finish_reason=FinishReason.ERROR
        )
    return echo_seed(request)


@pytest.fixture(scope="module")
def server():
    with serving(FakeEngine(script)) as running:
        yield running


@pytest.mark.parametrize("body", [{"prompt": "bad"}, {"prompt": "x", "n": 2}], ids=str)
def test_it_is_a_500_that_says_what_happened(server, body):
    answer = server.client.post("/v1/completions", json=body)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "non_finite"
    assert "NaN or infinite" in error["message"]
    assert server.client.post("/v1/completions", json={"prompt": "good", "seed": 5}).status_code == 200


def test_a_stream_ends_with_the_error(server):
    answer = server.client.post("/v1/completions", json={"prompt": "bad", "stream": True})
    assert "[DONE]" not in answer.text
    last = answer.text.strip().split("\n\n")[-1]
    assert json.loads(last.split("data: ")[1])["error"]["code"] == "non_finite"


def test_it_is_counted(server):
    server.client.post("/v1/completions", json={"prompt": "bad"})
    line = next(
        line
        for line in server.client.get("/metrics").text.splitlines()
        if line.startswith("draftline_request_success_total") and 'finished_reason="error"' in line
    )
    assert float(line.split()[-1]) >= 1
