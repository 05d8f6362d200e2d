"""What stands between both clients and the real server: cut connections, prefixes, proxies, lost replies."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from draftline_client import APIConnectionError, NotFoundError, StreamBrokenError

from tests.clients.proxies import CutAfter, proxy, strip
from tests.clients.real import RealServer

Build = Callable[..., Any]
STORY: dict[str, Any] = {"prompt": "tell me", "max_tokens": 40, "seed": 7, "ignore_eos": True}


def wait_until_idle(client: Any) -> None:
    """Wait until no request is under way, or else for the time limit of the test."""
    while len(client.requests.list()):
        pass


def wait_until_free(real: RealServer) -> None:
    """Wait until the engine has heard of it, too."""
    while (stats := real.engine.stats()).num_free_kv_blocks < stats.num_kv_blocks:
        time.sleep(0.001)


def test_a_cut_stream_goes_on_to_the_same_tokens(build: Build, real: RealServer) -> None:
    """The same seed draws the same token at the same place, whatever part of the text was the prompt."""
    story: dict[str, Any] = {**STORY, "max_tokens": 800, "return_token_ids": True}
    whole = build(base_url=real.url).completions.create(**story).choices[0]
    cut = CutAfter(3)
    with proxy(real.url, reply=cut) as url:
        client = build(base_url=url)
        stream = client.completions.create(**story, stream=True)
        with pytest.raises(StreamBrokenError) as caught:
            list(stream)
        received = caught.value.received
        assert cut.has_cut
        assert received.num_chunks == 3
        assert received.request_id == stream.request_id
        assert received.finish_reasons == (None,)
        assert 0 < len(received.token_ids) < 800
        going_on = {"prompt": [*received.prompt_token_ids, *received.token_ids]}
        left = {"max_tokens": 800 - len(received.token_ids)}
        rest = client.completions.create(**{**story, **going_on, **left}).choices[0]
    assert (*received.token_ids, *rest.token_ids) == whole.token_ids
    assert received.text == whole.text[: len(received.text)]


def test_a_cut_stream_frees_its_blocks(build: Build, real: RealServer) -> None:
    with proxy(real.url, reply=CutAfter(2)) as url:
        client = build(base_url=url)
        with pytest.raises(StreamBrokenError):
            list(client.completions.create(**{**STORY, "max_tokens": 1900}, stream=True))
        wait_until_idle(client)
    wait_until_free(real)


def test_an_early_close_frees_the_blocks_of_the_real_engine(build: Build, real: RealServer) -> None:
    client = build(base_url=real.url)
    with client.completions.create(**{**STORY, "max_tokens": 1900}, stream=True) as stream:
        next(stream)
    wait_until_idle(client)
    wait_until_free(real)


@pytest.mark.parametrize("suffix", ["", "/v1", "/v1/"])
def test_a_server_behind_a_prefix(build: Build, real: RealServer, suffix: str) -> None:
    with proxy(real.url, request=strip("/some/where")) as url:
        client = build(base_url=f"{url}/some/where{suffix}")
        reply = client.completions.create(**STORY)
        assert client.completions.create(**STORY, stream=True).get_final_completion().text == reply.text
        assert client.detokenize(client.tokenize(text="Hi").token_ids) == "Hi"
        assert client.models.retrieve("tiny").id == "tiny"
        with pytest.raises(NotFoundError, match="req-1"):
            client.requests.cancel("req-1")


def test_a_proxy_of_the_environment_is_used(
    server: Any, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    server.then(server.json({"version": "1.2"}))
    assert build(base_url="http://draftline.example:81/v1").version() == "1.2"
    (request,) = server.requests
    assert request.path == "http://draftline.example:81/version"
    assert request.headers["host"] == "draftline.example:81"


def test_a_proxy_of_the_environment_is_passed_by_where_it_says(
    server: Any, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "draftline.invalid")
    with pytest.raises(APIConnectionError) as caught:
        build(base_url="http://draftline.invalid", max_retries=0).version()
    assert not caught.value.request_sent
    assert server.requests == []


@pytest.mark.parametrize("path", ["requests", "responses"])
def test_a_deletion_whose_reply_is_lost_is_not_sent_again(
    server: Any, client: Any, sleeps: list[float], path: str
) -> None:
    """The second would be answered that there is nothing to delete."""
    server.then(lambda exchange: exchange.drop())
    with pytest.raises(APIConnectionError) as caught:
        (client.requests.cancel if path == "requests" else client.responses.delete)("a/b")
    assert caught.value.request_sent
    assert sleeps == []
    (request,) = server.requests
    assert (request.method, request.path) == ("DELETE", f"/v1/{path}/a%2Fb")


def test_a_deletion_that_was_refused_is_sent_again(server: Any, client: Any, sleeps: list[float]) -> None:
    server.then(server.error(503, Retry_After="3"), server.json({"id": "r", "deleted": True}))
    assert client.responses.delete("r") is None
    assert sleeps == [3.0]
