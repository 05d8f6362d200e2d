"""The engine thread behind its messages: plain data both ways, grammars compiled on its side."""

import asyncio
import pickle
import threading

import pytest

from engine.bridge.async_engine import AsyncEngine
from engine.bridge.engine_thread import EngineThread
from engine.bridge.messages import AbortRequests, AddRequests, CloseEngine
from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.outputs import FinishReason
from tests.tiny import generation, scripted_engine

SPEC = GrammarSpec(kind=GrammarKind.REGEX, source="a+")


class AnyToken:
    """A compiled grammar that allows everything, or its state."""

    error = None
    is_complete = False

    def start(self):
        return self

    def token_bitmask(self):
        return None

    def accept(self, token_id):
        pass


class Grammars:
    """A grammar source whose compiling can be held."""

    def __init__(self):
        self.may_end = threading.Event()
        self.threads = []
        self.compiled = {}

    def find(self, spec):
        return self.compiled.get(spec)

    def compile(self, spec, *, cancellation=None):
        self.threads.append(threading.current_thread().name)
        assert self.may_end.wait(20)
        if spec.source == "bad":
            raise RequestError("the regular expression cannot be used: no", param="response_format")
        return self.compiled.setdefault(spec, AnyToken())

    def close(self):
        pass


class Recorder:
    """An outbox that keeps what it is given, as it looks after a journey to another process."""

    def __init__(self):
        self.messages = []
        self.arrived = threading.Event()

    def put(self, messages, *, is_urgent):
        self.messages += pickle.loads(pickle.dumps(list(messages)))
        self.arrived.set()
        return True

    def tokens_of(self, number):
        tokens = []
        for message in self.messages:
            pairs = [*message.tokens, *((n, output.new_token_ids) for n, output in message.outputs)]
            tokens += [token for n, token_ids in pairs if n == number for token in token_ids]
        return tokens


def test_messages_are_plain_data_both_ways():
    is_aborted = threading.Event()

    def next_token(tokens):
        assert len(tokens) < 20 or is_aborted.wait(20)
        return (tokens[-1] + 1) % 100

    engine = scripted_engine(next_token, max_num_seqs=4)
    thread, outbox = EngineThread(engine), Recorder()
    number = thread.connect(outbox)
    requests = (generation([1], max_tokens=3, logprobs=1), generation([50], max_tokens=100))
    for message in (AddRequests(7, requests, number), AbortRequests((8,)), CloseEngine()):
        assert pickle.loads(pickle.dumps(message)) == message
    thread.send(pickle.loads(pickle.dumps(AddRequests(7, requests, number))))
    while not any(n == 7 and output.finish_reason for m in outbox.messages for n, output in m.outputs):
        assert outbox.arrived.wait(10)
    thread.send(AbortRequests((7, 8, 9)))
    is_aborted.set()
    thread.close()
    assert [m.step for m in outbox.messages] == list(range(1, len(outbox.messages) + 1))
    assert outbox.tokens_of(7) == [2, 3, 4]
    assert outbox.tokens_of(8) == [(51 + i) % 100 for i in range(len(outbox.tokens_of(8)))]
    assert engine.stats().requests_finished == {FinishReason.LENGTH: 1, FinishReason.ABORT: 1}
    assert pickle.loads(pickle.dumps(thread.stats)) == thread.stats == engine.stats()


@pytest.mark.parametrize("steps_ahead", [0, 2])
def test_tokens_of_continuations_go_where_their_requests_came_from(steps_ahead):
    passed, is_aborted = threading.Event(), threading.Event()

    def next_token(tokens):
        if len(tokens) == 20:
            passed.set()
            assert is_aborted.wait(20)
        return (tokens[-1] + 1) % 100

    engine = scripted_engine(next_token, steps_ahead=steps_ahead, max_model_len=64)
    thread, outboxes = EngineThread(engine), [Recorder(), Recorder()]
    numbers = [thread.connect(outbox) for outbox in outboxes]
    for first, to in ((10, 0), (20, 1), (30, 0)):
        requests = tuple(generation([first + i], max_tokens=40) for i in range(2))
        thread.send(AddRequests(first, requests, numbers[to]))
    assert passed.wait(20)
    thread.send(AbortRequests((20,)))
    is_aborted.set()
    for number, to in ((10, 0), (11, 0), (21, 1), (30, 0), (31, 0)):
        while not any(n == number and o.finish_reason for m in outboxes[to].messages for n, o in m.outputs):
            assert outboxes[to].arrived.wait(10)
    thread.close()
    assert engine.executor.num_continuations > 20
    for number, to in ((10, 0), (11, 0), (21, 1), (30, 0), (31, 0)):
        assert outboxes[to].tokens_of(number) == [(number + 1 + i) % 100 for i in range(40)]
        assert outboxes[1 - to].tokens_of(number) == []
    assert 15 < len(outboxes[1].tokens_of(20)) < 40
    for outbox in outboxes:
        steps = [message.step for message in outbox.messages]
        assert steps == sorted(set(steps)), "one message a step, in order"
    assert thread._routes == {}


@pytest.fixture
def grammars():
    return Grammars()


def run(scenario, grammars):
    engine = scripted_engine(lambda tokens: (tokens[-1] + 1) % 100, max_num_seqs=4, grammar_source=grammars)

    async def main():
        bridge = AsyncEngine(EngineThread(engine), max_queue=8)
        try:
            await asyncio.wait_for(scenario(bridge, engine), 20)
        finally:
            grammars.may_end.set()
            await asyncio.to_thread(bridge.close)

    asyncio.run(main())


async def tokens_of(stream):
    return [token async for output in stream for token in output.new_token_ids]


def test_a_grammar_that_was_not_compiled_holds_up_nobody_else(grammars):
    async def scenario(bridge, _):
        slow = bridge.generate([generation([1], max_tokens=2, grammar=SPEC)])
        assert await tokens_of(bridge.generate([generation([5], max_tokens=30)])) == list(range(6, 36))
        assert slow.num_open == 1
        grammars.may_end.set()
        assert await tokens_of(slow) == [2, 3]
        assert await tokens_of(bridge.generate([generation([1], max_tokens=2, grammar=SPEC)])) == [2, 3]
        assert len(grammars.threads) == 1, "it was found the second time"
        assert grammars.threads[0].startswith("grammar")

    run(scenario, grammars)


def test_a_request_that_ends_while_its_grammar_compiles_never_runs(grammars):
    async def scenario(bridge, engine):
        pair = bridge.generate([generation([i], max_tokens=2, grammar=SPEC) for i in (1, 2)])
        pair.abort(0)
        gone = bridge.generate([generation([3], max_tokens=2, grammar=SPEC)])
        gone.abort()
        assert await tokens_of(bridge.generate([generation([1], max_tokens=1)])) == [2], "all messages taken"
        grammars.may_end.set()
        assert await tokens_of(pair) == [3, 4]
        assert engine.stats().requests_finished == {FinishReason.LENGTH: 2}

    run(scenario, grammars)


def test_a_grammar_that_does_not_compile_ends_its_requests_and_no_others(grammars):
    async def scenario(bridge, engine):
        bad = GrammarSpec(kind=GrammarKind.REGEX, source="bad")
        refused = bridge.generate([generation([1], grammar=bad), generation([2])])
        grammars.may_end.set()
        with pytest.raises(RequestError, match="cannot be used") as caught:
            await tokens_of(refused)
        assert caught.value.param == "response_format"
        assert refused.num_open == 0
        assert await tokens_of(bridge.generate([generation([1], max_tokens=1)])) == [2]
        assert engine.stats().requests_finished == {FinishReason.LENGTH: 1}
        assert bridge.stats().num_requests_waiting == 0

    run(scenario, grammars)


def test_a_compiler_that_fails_is_a_refusal_too(grammars):
    async def scenario(bridge, _):
        grammars.compile = lambda _spec: 1 // 0
        with pytest.raises(RequestError, match="cannot be compiled"):
            await tokens_of(bridge.generate([generation([1], grammar=SPEC)]))
        assert not bridge.is_dead

    run(scenario, grammars)
