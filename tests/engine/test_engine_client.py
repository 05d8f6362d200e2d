"""What every EngineClient promises a server: engine thread and process, and the fake of the tests."""

import asyncio
import pickle
import tempfile
import threading
from pathlib import Path

import pytest

from engine.bridge.async_engine import AsyncEngine
from engine.bridge.engine_thread import EngineThread
from engine.interface.engine_client import EngineClient
from engine.interface.errors import EngineUnavailableError, QueueFullError, RequestError
from engine.interface.outputs import FinishReason
from tests.engine.test_engine_process import scripted_process
from tests.fakes import FakeEngine, Script
from tests.tiny import generation, scripted_engine


def thread_client(may_go_on):
    def next_token(tokens):
        assert len(tokens) < 2 or may_go_on.wait(20)
        return (tokens[-1] + 1) % 100

    engine = scripted_engine(next_token, max_num_seqs=4, max_model_len=128, block_size=4, num_blocks=128)
    return AsyncEngine(EngineThread(engine), max_queue=4)


def fake_client(may_go_on):
    def count(request):
        first = request.prompt_token_ids[-1] + 1
        return Script(steps=tuple((first + i,) for i in range(request.params.max_tokens)))

    engine = FakeEngine(count, max_model_len=128, vocab_size=100, max_open=8)
    if not may_go_on.is_set():
        engine.hold()
    return engine


def process_client(may_go_on):
    folder = tempfile.TemporaryDirectory()
    gate = Path(folder.name) / "gate"

    def open_gate():
        with folder:
            may_go_on.wait()
            gate.touch()
            gone.wait(30)

    gone = threading.Event()
    threading.Thread(target=open_gate).start()
    client = AsyncEngine(scripted_process(gate), max_queue=4)
    close = client.close
    client.close = lambda: (close(10), gone.set())
    return client


@pytest.fixture(params=[thread_client, process_client, fake_client])
def check(request):
    """Run a scenario with a client of each kind."""

    def run(scenario, *, held_after_first=False):
        may_go_on = threading.Event()
        if not held_after_first:
            may_go_on.set()

        async def main():
            client: EngineClient = request.param(may_go_on)
            try:
                await asyncio.wait_for(
                    scenario(client, may_go_on) if held_after_first else scenario(client), 20
                )
            finally:
                may_go_on.set()
                await asyncio.to_thread(client.close)

        asyncio.run(main())

    return run


async def collect(stream):
    outputs = [output async for output in stream]
    assert stream.num_open == 0
    return outputs


def test_every_request_of_a_call_ends_exactly_once(check):
    async def scenario(client):
        outputs = await collect(
            client.generate([generation([1], max_tokens=5), generation([40, 50], max_tokens=3)])
        )
        for index, expected in ((0, [2, 3, 4, 5, 6]), (1, [51, 52, 53])):
            mine = [output for output in outputs if output.index == index]
            assert [token for output in mine for token in output.new_token_ids] == expected
            assert [output.finish_reason for output in mine][-1] is FinishReason.LENGTH
            assert [output.finish_reason for output in mine][:-1] == [None] * (len(mine) - 1)
        assert client.stats().num_requests_running == client.stats().num_requests_waiting == 0
        assert client.stats().requests_finished[FinishReason.LENGTH] == 2

    check(scenario)


def test_what_comes_out_is_plain_data(check):
    async def scenario(client):
        for output in await collect(client.generate([generation([1], max_tokens=4)])):
            assert pickle.loads(pickle.dumps(output)) == output
            assert len(output.steps) == len(output.new_token_ids)
        assert pickle.loads(pickle.dumps(client.limits)) == client.limits
        assert pickle.loads(pickle.dumps(client.stats())).requests_finished

    check(scenario)


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (generation([], max_tokens=1), "prompt"),
        (generation([1], max_tokens=500), "max_tokens"),
        (generation([100], max_tokens=1), "prompt"),
        (generation([1], logit_bias={100: 1.0}), "logit_bias"),
    ],
    ids=["empty", "too long", "unknown token", "unknown bias"],
)
def test_all_of_a_call_starts_or_none(check, bad, param):
    async def scenario(client):
        with pytest.raises(RequestError) as caught:
            client.generate([generation([1]), bad])
        assert caught.value.param == param
        assert client.stats().num_requests_running == client.stats().num_requests_waiting == 0
        with pytest.raises(QueueFullError, match="the queue is full"):
            client.generate([generation([1])] * 9)
        assert len(await collect(client.generate([generation([1], max_tokens=1)]))) == 1

    check(scenario)


def test_an_abort_ends_one_request_or_all_and_brings_nothing_more(check):
    async def scenario(client, may_go_on):
        stream = client.generate([generation([i], max_tokens=60) for i in (1, 2)])
        if isinstance(client, FakeEngine):
            client.step()
        await anext(stream)
        stream.abort(0)
        assert stream.num_open == 1
        stream.get_ready()
        stream.abort(0)
        assert stream.num_open == 1, "aborting what has ended changes nothing"
        stream.abort()
        assert await collect(stream) == []
        may_go_on.set()
        if isinstance(client, FakeEngine):
            client.release()
        assert len(await collect(client.generate([generation([1], max_tokens=1)]))) == 1

    check(scenario, held_after_first=True)


def test_draining_lets_what_is_open_finish_and_takes_no_more(check):
    async def scenario(client):
        stream = client.generate([generation([1], max_tokens=20)])
        draining = asyncio.ensure_future(client.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailableError):
            client.generate([generation([1])])
        tokens = [token for output in await collect(stream) for token in output.new_token_ids]
        assert tokens == list(range(2, 22))
        assert await draining
        assert not client.is_dead

    check(scenario)


def test_draining_ends_what_takes_too_long_with_an_error(check):
    async def scenario(client):
        stream = client.generate([generation([1], max_tokens=100)])
        await client.drain(0)
        try:
            outputs = await collect(stream)
        except EngineUnavailableError:
            return
        assert outputs[-1].finish_reason is FinishReason.LENGTH, "it was quicker"

    check(scenario)
