"""What a client may send: refused in bounded time, or bounded in every step; and nothing is left behind."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from engine.interface.cancellation import Cancellation
from engine.interface.errors import CancelledError, EngineUnavailableError, RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.sampling import grammar_compiler as compiler_module
from engine.sampling.grammar_compiler import GrammarCompiler
from engine.sampling.grammar_library import MAX_SOURCE_BYTES
from engine.sampling.token_bitmask import apply_token_bitmask

END = 256
TOKENS = [*(bytes([byte]) for byte in range(256)), b"<|end|>", b"aa", b"aaaa", b'{"', b'":', b"true", b"  "]
NUM_STEPS = 40


def new_compiler(**options):
    return GrammarCompiler(
        TOKENS, end_token_ids=frozenset({END}), special_token_ids=frozenset({END}), **options
    )


@pytest.fixture(scope="module")
def compiler():
    compiler = new_compiler(deadline_seconds=2.0)
    yield compiler
    compiler.close()


def schema(value):
    return GrammarSpec(
        kind=GrammarKind.JSON_SCHEMA, source=value if isinstance(value, str) else json.dumps(value)
    )


def regex(source):
    return GrammarSpec(kind=GrammarKind.REGEX, source=source)


def lark(source):
    return GrammarSpec(kind=GrammarKind.LARK, source=source)


def choice(source):
    return GrammarSpec(kind=GrammarKind.CHOICE, source=source)


def chain(keyword, length):
    """Return a schema whose definition d0 needs d1, twice, and so on."""
    definitions = {
        f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
        for i in range(length)
    }
    return schema({"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": {"type": "null"}}})


REFUSED = {
    "schema of a megabyte": schema({"enum": ["x" * 1_000_000]}),
    "schema of 64 KiB and a byte": schema('"' + "x" * (MAX_SOURCE_BYTES - 1) + '"'),
    "open brackets": schema("[" * 60_000),
    "open braces": schema('{"a":' * 10_000),
    "deep schema": schema('{"items":' * 3000 + "{}" + "}" * 3000),
    "deep schema of legal depth": schema('{"items":' * 101 + "{}" + "}" * 101),
    "endless reference": schema({"$ref": "#"}),
    "references in a ring": schema({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}),
    "product of branches": schema(
        {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for i in range(10)]} for j in range(20)]}
    ),
    "numbers that compile for minutes": schema(
        {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967, 9949, 9941)]}
    ),
    "huge numbers": schema({"type": "integer", "multipleOf": 999_999_999_999}),
    "many optional properties": schema({"type": "object", "properties": {f"p{i}": {} for i in range(2500)}}),
    "regex with open brackets": regex("[" * 60_000),
    "regex with open parentheses": regex("(" * 60_000),
    "deep regex": regex("(" * 30_000 + "a" + ")" * 30_000),
    "repetitions of repetitions": regex("(((((a?){20}){20}){20}){20})"),
    "regex that cannot match": regex(r"[^\x00-\x{10FFFF}]"),
    "look-around": regex("(?=a)b"),
    "back reference": regex(r"(a)\1"),
    "regex with a lone surrogate": regex("\ud800"),
    "a long chain of rules": lark(
        "start: t0\n" + "".join(f"t{i}: t{i + 1}\n" for i in range(3000)) + 't3000: "x"'
    ),
    "terminals that double": lark(
        "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(40)) + 'T40: "x"'
    ),
    "intersections": lark(
        "start: A\nA: " + " & ".join(f"/.*{letter}.*/" for letter in "abcdefghijklmnopqrstuvwxyz")
    ),
    "a terminal of itself": lark('start: A\nA: A "x" | "y"'),
    "left recursion without an end": lark('start: start "a"'),
    "a rule of itself": lark("start: start"),
    "deep grammar": lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "open brackets in a grammar": lark("start: " + "[" * 60_000),
    "open quotes in a grammar": lark('start: "' + '\\"' * 30_000),
    "open slashes in a grammar": lark("start: /" + "\\/" * 30_000),
    "many alternatives": lark("start: " + "|".join(f'"w{i}"' for i in range(6000))),
    "nullable repetitions": lark('start: x{0,100000}\nx: "a"?'),
    "zero bytes": lark("\x00\xff{{{"),
    "special tokens by name": lark("start: <|end|>"),
    "special tokens by number": lark("start: <[256]>"),
    "any token": lark("start: <[*]>"),
    "options of the library": lark('%llguidance {"no_forcing": false}\nstart: "a"'),
    "temperature": lark("start: x\nx[temperature=0.5]: /a*/"),
    "stop": lark('start: x\nx[lazy, stop="b"]: /a*/'),
    "GBNF": lark('root ::= "a"'),
    "no choice": choice("[]"),
    "choices that are no list": choice('"abc"'),
    "choices that are no strings": choice('["a", 1]'),
    "choices that are no JSON": choice("a, b"),
    "choices of a lone surrogate": choice('["\\ud800"]'),
    "choices beyond the limit": choice(json.dumps(["x" * 100 + str(i) for i in range(1000)])),
    "source of a plain object": GrammarSpec(kind=GrammarKind.JSON_OBJECT, source="{}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(compiler, name):
    with pytest.raises(RequestError) as caught:
        compiler.compile(REFUSED[name])
    message = str(caught.value)
    assert len(message) < 400
    assert "\n" not in message
    assert "backtrace" not in message
    message.encode()


BOUNDED = {
    "exponential automaton": regex("(a|b)*a(a|b){30}"),
    "large counters": regex("(a{1000}){1000}"),
    "nested stars": regex("((a*)*)*b"),
    "ambiguous repetition": regex("(a|aa)+c"),
    "letters of all scripts": regex(r"\p{L}{1000}"),
    "a long regex": regex("a" * 60_000),
    "many words": regex("|".join(f"w{i}" for i in range(9000))),
    "long strings": schema({"type": "string", "minLength": 10**9}),
    "long arrays": schema({"type": "array", "items": True, "minItems": 10**9}),
    "a huge constant": schema({"const": "x" * 60_000}),
    "references that double": chain("anyOf", 30),
    "intersections that double": chain("allOf", 30),
    "an object in itself": schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    "ambiguity": lark('start: start start | "a"'),
    "more ambiguity": lark('start: start start start | start start | "a" | ""'),
    "rules that double": lark(
        "start: t0\n" + "".join(f"t{i}: t{i + 1} t{i + 1}\n" for i in range(40)) + 't40: "x"'
    ),
    "many choices": choice(json.dumps([f"choice {i}" for i in range(3500)])),
    "choices that share a beginning": choice(json.dumps(["a" * i for i in range(340)])),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_it_is_bounded(compiler, name):
    """A step may give up, but it says so and always leaves something to choose."""
    state = compiler.compile(BOUNDED[name]).start()
    for _ in range(NUM_STEPS):
        logits = torch.zeros(len(TOKENS))
        apply_token_bitmask(logits, state.token_bitmask())
        token_ids = torch.isfinite(logits).nonzero().flatten().tolist()
        assert token_ids
        if state.is_complete:
            assert token_ids == [END]
            break
        state.accept(token_ids[-1] if token_ids[-1] != END else token_ids[0])
    assert state.error is None or state.is_complete


def test_without_end_tokens_the_caller_stops_where_the_answer_is_complete():
    compiler = GrammarCompiler([b"a", b"b"], end_token_ids=frozenset(), special_token_ids=frozenset())
    state = compiler.compile(choice('["ab", "abb"]')).start()
    for token_id in (0, 1):
        state.accept(token_id)
    assert not state.is_complete  # it may end, but nothing could end it
    logits = torch.zeros(2)
    apply_token_bitmask(logits, state.token_bitmask())
    assert torch.isfinite(logits).tolist() == [False, True]
    state.accept(1)
    assert state.is_complete
    assert state.token_bitmask() is None, "any token may come"


def test_after_a_crash_and_a_hang_the_next_one_compiles(compiler):
    for name in ("a long chain of rules", "numbers that compile for minutes"):
        with pytest.raises(RequestError, match="more than 2 seconds to compile, or nests too deeply"):
            compiler.compile(REFUSED[name])
        assert compiler.compile(regex(f"after {name}")).start().forced_tokens(5) == list(b"after")


def test_a_grammar_is_compiled_once_and_kept(compiler):
    spec = regex("kept|compiled")
    assert compiler.compile(spec) is compiler.compile(regex("kept|compiled"))


def test_the_cache_forgets_what_was_used_longest_ago():
    compiler = new_compiler(max_cached=2)
    first, second, third = (choice(json.dumps([letter])) for letter in "abc")
    kept, dropped = compiler.compile(first), compiler.compile(second)
    assert compiler.compile(first) is kept
    compiler.compile(third)
    assert compiler.compile(first) is kept
    assert compiler.compile(second) is not dropped


def test_many_who_want_the_same_compile_it_once(compiler, monkeypatch):
    compiled = []

    def counting(tokenizer, grammar, kind):
        compiled.append(grammar)
        return new_matcher(tokenizer, grammar, kind)

    new_matcher = compiler_module.new_matcher
    monkeypatch.setattr(compiler_module, "new_matcher", counting)
    barrier, grammars = threading.Barrier(8), []

    def compile_one():
        barrier.wait()
        grammars.append(compiler.compile(schema({"const": "wanted by many"})))

    run_threads(compile_one)
    assert len(grammars) == 8
    assert len(set(grammars)) == 1
    assert len(compiled) == 1


def test_many_who_want_the_impossible_are_all_refused(compiler):
    barrier, messages = threading.Barrier(8), []

    def compile_one():
        barrier.wait()
        with pytest.raises(RequestError) as caught:
            compiler.compile(schema({"type": "unknown"}), param=f"field {threading.get_ident()}")
        assert caught.value.param == f"field {threading.get_ident()}"
        messages.append(str(caught.value))

    run_threads(compile_one)
    assert messages == ["the JSON schema cannot be used: Invalid type: unknown"] * 8


def run_threads(target):
    threads = [threading.Thread(target=target) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_answers_of_one_grammar_run_in_many_threads(compiler):
    grammar, texts = compiler.compile(regex("(a|b)*a(a|b){6}c")), []

    def answer():
        state, text = grammar.start(), b""
        while not state.is_complete:
            token_id = next(i for i in (*b"abc",) if state.allows(i) and (i != ord("a") or len(text) < 50))
            state.accept(token_id)
            text += TOKENS[token_id]
            if len(text) > 50 and state.allows(ord("c")):
                state.accept(ord("c"))
        texts.append(text)

    run_threads(answer)
    assert len(texts) == 8
    assert len(set(texts)) == 1


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_trial_process_ends_with_its_compiler():
    compiler = new_compiler()
    compiler.compile(regex("a"))
    [pid] = compiler._trials.pids
    assert lives(pid)
    del compiler
    gc.collect()
    assert not lives(pid)


def test_a_closed_compiler_starts_its_process_again():
    compiler = new_compiler()
    compiler.compile(regex("a"))
    [pid] = compiler._trials.pids
    compiler.close()
    compiler.close()
    assert not lives(pid)
    compiler.compile(regex("b"))
    [new_pid] = compiler._trials.pids
    assert new_pid != pid
    os.kill(new_pid, signal.SIGKILL)  # by somebody else
    os.waitid(os.P_PID, new_pid, os.WEXITED | os.WNOWAIT)
    compiler.compile(regex("c"))
    compiler.close()


def test_objects_and_choices_need_no_trial():
    compiler = new_compiler()
    compiler.compile(choice('["a"]'))
    compiler.compile(GrammarSpec(kind=GrammarKind.JSON_OBJECT))
    assert compiler._trials.pids == []


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_slow_grammars_hold_up_no_other_and_end_when_nobody_waits_for_them():
    compiler = new_compiler(deadline_seconds=60)
    slow_spec = REFUSED["numbers that compile for minutes"]
    other = replace(slow_spec, source=slow_spec.source + " ")
    cancellations = [Cancellation(), Cancellation()]
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(compiler.compile, slow_spec, cancellation=cancellations[0])]
        wait_for(lambda: compiler._trials._idle.qsize() == 2)
        slow.append(pool.submit(compiler.compile, slow_spec, cancellation=cancellations[1]))
        hidden = pool.submit(compiler.compile, other, cancellation=cancellations[1])
        compiler.compile(regex("a"))
        assert not any(future.done() for future in (*slow, hidden))
        cancellations[0].cancel()
        with pytest.raises(CancelledError):
            slow[0].result(20)
        assert not slow[1].done(), "it has the same grammar and goes on by itself"
        cancellations[1].cancel()
        for future in (slow[1], hidden):
            with pytest.raises(CancelledError):
                future.result(20)
    assert compiler._trials._idle.qsize() == 3


@pytest.mark.parametrize("executable", ["/nonexistent/python", "/bin/false"])
def test_no_process_is_not_the_request_s_fault(monkeypatch, executable):
    compiler = new_compiler()
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(EngineUnavailableError, match="grammars"):
        compiler.compile(regex("a"))
    monkeypatch.undo()
    assert compiler.compile(regex("a")).start().allows(ord("a"))
    compiler.close()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("engine.interface.grammar_spec", "torch"),
        ("engine.interface.grammar_spec", "llguidance"),
        ("engine.sampling.grammar", "llguidance"),
    ],
)
def test_imports_are_light(module, absent):
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
