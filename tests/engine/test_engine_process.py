# ruff: noqa: ASYNC110, ASYNC240 - what is waited for happens in other processes
"""An engine in a process of its own: the same outputs, and what becomes of requests when it fails."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from engine.bridge import engine_process
from engine.bridge.async_engine import AsyncEngine
from engine.bridge.engine_process import EngineProcess
from engine.bridge.engine_thread import EngineThread
from engine.bridge.engine_worker import Sender
from engine.bridge.messages import AddRequests, RequestsRefused
from engine.bridge.step_manifest import NUM_BYTES, StepManifest
from engine.bridge.wire import (
    Channel,
    CompileGrammar,
    Delivery,
    EngineReady,
    GrammarCompiled,
    Heartbeat,
    LoadFailed,
    LogLine,
    StartEngine,
)
from engine.checkpoint import load_checkpoint
from engine.interface.cache_explanation import CacheEnd
from engine.interface.config import EngineConfig
from engine.interface.errors import (
    CheckpointError,
    ConfigError,
    EngineDeadError,
    EngineRestartingError,
    QueueFullError,
    RequestError,
    StepError,
)
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.pooling import Pooling
from engine.loading.loader import build_engine, load_engine_process
from tests.engine.scripted_worker import EXIT, HANG, INFO, KILL, RAISE, STOP
from tests.tiny import generation, scripted_engine

ROOT = Path(__file__).parents[2]
PAIR = ROOT / "tests/assets/pair/target"
CONFIG = EngineConfig(max_model_len=256, kv_cache_memory=2**24, max_num_seqs=4)


def scripted_process(gate, *, model="script", config=CONFIG, **settings):
    """An EngineProcess of tests/engine/scripted_worker.py; the gate is a path."""
    command = [sys.executable, str(ROOT / "tests/engine/scripted_worker.py"), str(gate)]
    return EngineProcess(command, StartEngine(model, None, config), **settings)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setattr(engine_process, "_BACKOFF", (0.0,))


@pytest.fixture
def gate(tmp_path):
    path = tmp_path / "gate"
    path.touch()
    return path


def run(scenario, host):
    async def main():
        client = AsyncEngine(host, max_queue=16)
        try:
            await asyncio.wait_for(scenario(client, host), 60)
        finally:
            await asyncio.to_thread(client.close, 5)

    asyncio.run(main())


async def tokens_of(client, request):
    return [token async for output in client.generate([request]) for token in output.new_token_ids]


async def rest_of(stream):
    return [output async for output in stream]


async def again(client):
    """Wait until the engine takes work again."""
    while client.is_restarting:
        await asyncio.sleep(0.01)
    assert not client.is_dead


async def outputs_of(client, requests):
    outputs = [output async for output in client.generate(requests)]
    merged = {}
    for output in outputs:
        mine = merged.setdefault(output.index, {"tokens": (), "logprobs": (), "more": []})
        mine["tokens"] += output.new_token_ids
        mine["logprobs"] += output.logprobs
        mine["more"] += [output.prompt_logprobs, output.embedding, output.finish_reason, output.stop_token_id]
        mine["more"] = [one for one in mine["more"] if one is not None]
    return merged


def test_the_same_outputs_as_in_a_thread():
    regex = GrammarSpec(kind=GrammarKind.REGEX, source="[a-z ]{5,20}")
    requests = [
        generation([1, 2, 3], max_tokens=12, seed=1, temperature=1.0, ignore_eos=True),
        generation([4] * 40, max_tokens=5, logprobs=3, prompt_logprobs=2),
        generation([4] * 30, max_tokens=1, logprobs=0, all_logprobs=True),
        generation([5, 6], max_tokens=10, logit_bias={7: 2.5}, banned_sequences=frozenset({(1, 2), (3,)})),
        generation([8, 9], max_tokens=20, grammar=regex, temperature=0.5, seed=3),
        generation(list(range(30)), max_tokens=0, pooling=Pooling.MEAN),
    ]
    collected = []

    async def scenario(client, _):
        collected.append(await outputs_of(client, requests))
        with pytest.raises(RequestError, match="regular expression cannot be used"):
            client.compile_grammar(GrammarSpec(kind=GrammarKind.REGEX, source="("))
        client.compile_grammar(GrammarSpec(kind=GrammarKind.REGEX, source="ab?"))
        assert client.info.max_model_len == client.limits.max_model_len == 256
        with pytest.raises(RequestError, match="token id"):
            client.generate([generation([10**6])])

    loaded = build_engine(load_checkpoint(str(PAIR)), CONFIG)
    run(scenario, EngineThread(loaded.engine, info=loaded.info))
    run(scenario, load_engine_process(str(PAIR), CONFIG)._host)
    in_thread, in_process = collected
    assert in_process == in_thread


def test_the_cache_is_explained_and_looked_up_as_in_a_thread(gate):
    prompt = list(range(1, 12))
    asking = replace(generation(prompt, max_tokens=2), explain_cache=True)
    other = replace(asking, prompt_token_ids=(*prompt[:6], 70, 71))
    collected = []

    async def scenario(client, _):
        before = await client.look_up_cache(asking)
        first = [output.cache_explanation async for output in client.generate([asking])]
        second = [output.cache_explanation async for output in client.generate([other])]
        after = await asyncio.gather(*(client.look_up_cache(one) for one in (asking, other) * 30))
        with pytest.raises(RequestError, match="token id"):
            await client.look_up_cache(generation([10**6]))
        assert first[0] == before
        assert not any(first[1:])
        collected.append((first, second, after))

    run(scenario, scripted_process(gate))
    run(scenario, EngineThread(scripted_engine(max_num_seqs=4)))
    assert collected[0] == collected[1]
    _, [found, *_], after = collected[0]
    assert (found.end, found.num_cached_tokens) == (CacheEnd.DIFFERENT_TOKEN, 6)
    assert (found.cached_token_id, found.prompt_token_id) == (7, 70)
    assert {one.end for one in after} == {CacheEnd.END_OF_PROMPT}


def test_a_lookup_hears_of_a_crash_and_works_again_after_it(gate):
    gate.unlink()

    async def scenario(client, host):
        stream = client.generate([generation([1, 2, 3], max_tokens=50)])
        while client.stats().num_requests_running == 0:
            await asyncio.sleep(0.01)
        lookups = [asyncio.ensure_future(client.look_up_cache(generation([1, 2, 3]))) for _ in range(65)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="64 lookups"):
            await lookups.pop()
        lookups.pop().cancel()
        os.kill(host.pid, signal.SIGKILL)
        for lookup in lookups:
            with pytest.raises(EngineRestartingError):
                await lookup
        with pytest.raises(EngineRestartingError):
            await rest_of(stream)
        gate.touch()
        await again(client)
        assert (await client.look_up_cache(generation([1, 2, 3]))).end is CacheEnd.NEVER_SEEN

    run(scenario, scripted_process(gate))


def test_what_cannot_be_loaded_is_the_loaders_own_error(tmp_path, gate):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_engine_process(str(tmp_path / "nowhere.gguf"), CONFIG)
    with pytest.raises(ConfigError, match="max_model_len must be at most"):
        load_engine_process(str(PAIR), EngineConfig(max_model_len=10**6))
    before, others = held(), set(children())
    for model, error, message in (
        ("missing", CheckpointError, "missing: no such file"),
        ("crash", ConfigError, "the engine's process ended: it ended with code 7"),
    ):
        with pytest.raises(error, match=message):
            scripted_process(gate, model=model)
    assert held()[0] == before[0]
    assert set(children()) <= others


def test_open_requests_hear_of_a_crash_within_a_second_and_others_run_after_it(gate, caplog):
    gate.unlink()

    async def scenario(client, host):
        streams = [client.generate([generation([i], max_tokens=50)]) for i in range(6)]
        await anext(streams[0])
        pid, started = host.pid, time.monotonic()
        os.kill(pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineRestartingError, match="is being restarted"):
                await rest_of(stream)
        assert time.monotonic() - started < 1.0
        assert client.is_restarting
        assert not client.is_dead
        with pytest.raises(EngineRestartingError):
            client.generate([generation([1])])
        with pytest.raises(EngineRestartingError):
            await asyncio.to_thread(client.compile_grammar, GrammarSpec(kind=GrammarKind.REGEX, source="a"))
        gate.touch()
        await again(client)
        assert host.pid != pid
        assert await tokens_of(client, generation([1], max_tokens=5)) == [2, 3, 4, 5, 6]
        assert client.stats().num_requests_running == 0
        assert "ended by signal 9" in caplog.text
        assert "started again (1 of 5)" in caplog.text

    run(scenario, scripted_process(gate))


def held():
    """Descriptors and threads of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def children():
    """Processes that this one started and that are not reaped."""
    pids = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that ended just now
            pids += [int(pid) for pid in (task / "children").read_text().split()]
    return pids


def test_crashes_leave_no_descriptor_thread_or_process_behind(gate):
    async def scenario(client, host):
        before, pids = held(), []
        for _ in range(3):
            pids.append(host.pid)
            os.kill(host.pid, signal.SIGKILL)
            while host.pid == pids[-1]:
                await asyncio.sleep(0.01)
            await again(client)
        deadline = time.monotonic() + 5
        while held() != before and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert held() == before
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    run(scenario, scripted_process(gate))


def test_who_comes_to_its_end_after_a_crash_did_not_cause_it(gate):
    request = generation([1], max_tokens=3)

    async def scenario(client, host):
        for _ in range(3):
            gate.unlink()
            stream = client.generate([request])
            await anext(stream)
            while not host._child.manifest.read():
                await asyncio.sleep(0.005)
            os.kill(host.pid, signal.SIGKILL)  # from outside, whoever is in the step
            with pytest.raises(EngineRestartingError):
                await rest_of(stream)
            gate.touch()
            await again(client)
            assert await tokens_of(client, request) == [2, 3, 4]

    run(scenario, scripted_process(gate))


def test_who_was_in_the_step_at_two_crashes_is_refused_and_nobody_else(gate):
    def asked(seed):
        return generation([7, KILL], max_tokens=3, seed=seed)

    async def scenario(client, _):
        for number in range(2):
            other = client.generate([generation([number], max_tokens=80)])
            await anext(other)
            with pytest.raises(EngineRestartingError):
                await tokens_of(client, asked(seed=number))
            await again(client)
        with pytest.raises(StepError, match="both times that the engine crashed"):
            client.generate([generation([1]), asked(seed=77)])
        assert await tokens_of(client, generation([0], max_tokens=2)) == [1, 2]
        assert await tokens_of(client, generation([7, 80], max_tokens=3)) == [81, 82, 83]

    run(scenario, scripted_process(gate))


@pytest.mark.parametrize("token", [HANG, STOP, EXIT])
def test_an_engine_that_is_stuck_or_leaves_is_started_again(gate, token, monkeypatch, caplog):
    monkeypatch.setattr(engine_process, "_SILENCE", 1.5)
    monkeypatch.setattr(engine_process, "_LOOK", 0.1)

    async def scenario(client, _):
        with pytest.raises(EngineRestartingError):
            await tokens_of(client, generation([token], max_tokens=3))
        await again(client)
        assert await tokens_of(client, generation([1], max_tokens=2)) == [2, 3]

    run(scenario, scripted_process(gate, stall_seconds=0.5))
    reasons = {
        HANG: "a step did not end within 0.5 s",
        STOP: "it said nothing for",
        EXIT: "ended with code 1",
    }
    assert reasons[token] in caplog.text


def test_a_step_that_raises_ends_its_request_and_not_the_process(gate, caplog):
    async def scenario(client, host):
        pid = host.pid
        [output] = [output async for output in client.generate([generation([RAISE], max_tokens=3)])]
        assert output.is_step_error
        assert host.pid == pid
        [line] = [line for line in caplog.messages if "a step fails with request" in line]
        assert line.startswith("a step fails"), "the log of the process is the server's"

    with caplog.at_level(logging.INFO):
        run(scenario, scripted_process(gate))


def test_an_engine_that_fails_again_and_again_is_dead(gate, monkeypatch):
    monkeypatch.setattr(engine_process, "_MAX_CRASHES", 99)

    async def scenario(client, _):
        for _ in range(5):
            with pytest.raises(EngineRestartingError):
                await tokens_of(client, generation([KILL], max_tokens=3))
            await again(client)
        with pytest.raises(EngineDeadError, match="ended by signal 9"):
            await tokens_of(client, generation([KILL], max_tokens=3))
        assert client.is_dead
        assert not client.is_restarting
        with pytest.raises(EngineDeadError):
            client.generate([generation([1])])

    run(scenario, scripted_process(gate))


def test_a_process_that_is_stopped_holds_up_no_caller(gate):
    async def scenario(client, host):
        os.kill(host.pid, signal.SIGSTOP)
        started = time.monotonic()
        for number in range(16):
            host.send(
                AddRequests(1000 + 100 * number, (generation(list(range(90)) * 1, max_tokens=1),) * 90, 0)
            )
        assert time.monotonic() - started < 1.0
        os.kill(host.pid, signal.SIGKILL)

    run(scenario, scripted_process(gate))


def test_closing_while_it_restarts_takes_no_time(gate, monkeypatch):
    monkeypatch.setattr(engine_process, "_BACKOFF", (60.0,))
    host = scripted_process(gate)
    os.kill(host.pid, signal.SIGKILL)
    while not host.is_restarting:
        time.sleep(0.01)
    started = time.monotonic()
    assert host.close(5)
    assert time.monotonic() - started < 3


def test_closing_while_the_next_process_is_being_started_leaves_none_behind(gate, monkeypatch):
    host = scripted_process(gate)
    started, may_go_on, children = threading.Event(), threading.Event(), []

    class SlowlyStarted(engine_process._Child):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            children.append(self)
            started.set()
            assert may_go_on.wait(10)

    monkeypatch.setattr(engine_process, "_Child", SlowlyStarted)
    os.kill(host.pid, signal.SIGKILL)
    assert started.wait(10)
    closing = threading.Thread(target=host.close, args=(5,))
    closing.start()
    assert host._closing.wait(10)
    time.sleep(0.1)
    may_go_on.set()
    closing.join(20)
    assert not closing.is_alive()
    assert children[0].process.poll() is not None


def test_closing_ends_a_process_that_hangs(gate):
    async def scenario(client, host):
        client.generate([generation([HANG], max_tokens=3)])
        await asyncio.sleep(0.3)
        started = time.monotonic()
        assert await asyncio.to_thread(host.close, 0.5)
        assert time.monotonic() - started < 3
        assert host._child.process.returncode == -signal.SIGKILL

    host = scripted_process(gate)

    async def main():
        await scenario(AsyncEngine(host, max_queue=4), host)

    asyncio.run(main())


def test_a_process_whose_server_is_gone_leaves(gate):
    host = scripted_process(gate)
    child = host._child
    host._closing.set()
    child.channel.shut_down()
    assert child.wait(10)
    assert host.close(5)


def test_signals_of_the_terminal_are_the_servers():
    host = load_engine_process(str(PAIR), CONFIG)._host
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(host.pid, number)
    time.sleep(0.3)
    assert host._child.process.poll() is None
    assert host.close(10)
    assert host._child.process.returncode == 0


MESSAGES = [
    StartEngine("model", None, CONFIG),
    CompileGrammar(3, GrammarSpec(kind=GrammarKind.REGEX, source="a")),
    AddRequests(1, (generation([1, 2], logit_bias={5: 1.0}, allowed_token_ids=frozenset({1})),), 0),
    EngineReady(INFO, scripted_engine().limits),
    LoadFailed("ConfigError", "no"),
    GrammarCompiled(3, "reason", "param"),
    Delivery(0, [], [], []),
    Heartbeat(scripted_engine().stats()),
    LogLine("a", 20, "text"),
]


@pytest.mark.parametrize("cut", [1, 3, 7, 10**6])
def test_messages_are_the_same_however_the_socket_cuts_them(cut):
    recorder, player = socket.socketpair()
    with player:
        with recorder:
            Channel(recorder).send(MESSAGES)
        frames = b""
        while part := player.recv(65536):
            frames += part
    ours, theirs = socket.socketpair()
    with theirs:
        receiver, received = Channel(theirs), []
        with ours:
            for start in range(0, len(frames), cut):
                ours.sendall(frames[start : start + cut])
                received += receiver.receive(0.1)
            while len(received) < len(MESSAGES):
                received += receiver.receive(1.0)
            assert received == MESSAGES
            assert receiver.receive(0.01) == []
        with pytest.raises(EOFError):
            receiver.receive()


JUNK = [bytes(5), b"\xff" * 50, b"\x05\x00\x00\x00\xee1234", b"\x05\x00\x00\x00\x021234"]


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_no_message_ends_the_channel(junk):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(junk)
        with pytest.raises((EOFError, msgspec.DecodeError)):
            Channel(theirs).receive()


def test_the_manifest_names_the_requests_of_the_step_that_runs(tmp_path):
    with (tmp_path / "manifest").open("w+b") as file:
        file.truncate(NUM_BYTES)
        writer, reader = StepManifest(file.fileno()), StepManifest(file.fileno())
    assert reader.read() == ()
    writer.begin([5, 2**40])
    assert reader.read() == (5, 2**40)
    writer.begin(range(10_000))
    assert len(reader.read()) == 4096
    writer.end()
    assert reader.read() == ()
    numbers = [3, 4]
    for named in (numbers, numbers, [8], numbers):
        writer.begin(named)
        assert reader.read() == tuple(named)
        writer.end()
        assert reader.read() == ()


class Odd(int):
    """No plain number: such a one was never sent, and waited for for ever."""


def test_what_is_no_plain_data_is_an_error_at_once(gate):
    config = EngineConfig(kv_cache_memory=Odd(2**24))
    with pytest.raises(TypeError, match="Odd"):
        scripted_process(gate, config=config)


class SlowChannel:
    """Takes what is sent, but not before it may."""

    def __init__(self):
        self.sent, self.may_send = [], threading.Event()

    def send(self, messages):
        self.may_send.wait(10)
        self.sent += messages


def test_what_is_logged_before_an_end_arrives_before_it():
    channel = SlowChannel()
    sender = Sender(channel, interval=0.0)
    sender.post(LogLine("engine", logging.INFO, "first"))  # keeps the sender busy, so that the rest waits
    sender.post(LogLine("engine", logging.ERROR, "it failed"))
    sender.deliver(3, [RequestsRefused((1,), "it failed", None)], is_urgent=True)
    channel.may_send.set()
    sender.close()
    kinds = [type(message) for message in channel.sent if not isinstance(message, Heartbeat)]
    assert kinds == [LogLine, LogLine, Delivery]
