"""loadtest.perplexity on the real model: through HTTP and inside the process it is one figure."""

import json

import pytest

from loadtest import perplexity


def test_http_and_engine_agree_on_the_real_model(api, served_model, monkeypatch, capsys):
    text = ("--text-chars", "900", "--context", "64")
    perplexity.main(["--base-url", str(api.base_url), *text])
    over_http = json.loads(capsys.readouterr().out.splitlines()[-1])
    perplexity.main(["--dtype", "float32", *text])
    inside = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert inside["draftline"]["tokens"] == over_http["draftline"]["tokens"] > 60
    assert inside["draftline"]["perplexity"] == pytest.approx(over_http["draftline"]["perplexity"], rel=1e-3)
    assert inside["text_sha256"] == over_http["text_sha256"]
