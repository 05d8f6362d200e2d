"""Grammars and drafts: what is forced is drafted, what is not allowed never is."""

import json
import re

import pytest

from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.speculation import DraftSource
from engine.interface.structural_tag import StructuralTag, Thought
from tests.drafters import END, asking, byte_checkpoint, byte_engine, noisy_copy, scripted_speculator
from tests.tiny import generate, generation, run_to_end


def constrained(kind, source, **params):
    spec = GrammarSpec(kind=kind, source=source)
    return generation(b"Answer: ", grammar=spec, **{"temperature": 1.0, "max_tokens": 60, "seed": 1} | params)


@pytest.fixture(scope="module")
def engine():
    made = byte_engine(draft=noisy_copy(byte_checkpoint(), 0.02), speculation="auto")
    yield made
    made.close()


def test_forced_tokens_are_free_drafts(engine):
    before = engine.stats().num_steps
    request = engine.add_request(asking(constrained(GrammarKind.REGEX, "a{40}b"), "ngram", 16))
    sources = []
    while engine.has_work:
        sources += [output.speculation.source for output in engine.step() if output.speculation]
    assert bytes(t for t in request.token_ids[8:] if t != END) == b"a" * 40 + b"b"
    assert set(sources) <= {DraftSource.GRAMMAR, None}
    assert engine.stats().num_steps - before <= 5
    assert engine.stats().num_accepted_tokens >= 36


@pytest.mark.parametrize("mode", ["auto", "ngram", "draft"])
def test_answers_match_whatever_drafts(engine, mode):
    requests = [
        constrained(GrammarKind.CHOICE, json.dumps(["Ann", "Annabel", "Bob"]), seed=seed) for seed in range(4)
    ] + [constrained(GrammarKind.REGEX, r"[a-c]{3,9}-(yes|no)", seed=seed) for seed in range(4)]
    plain = generate(engine, *[asking(request, "off") for request in requests])
    assert generate(engine, *[asking(request, mode, 6) for request in requests]) == plain
    for answer in plain[:4]:
        assert bytes(t for t in answer if t != END) in (b"Ann", b"Annabel", b"Bob")
    for answer in plain[4:]:
        assert re.fullmatch(r"[a-c]{3,9}-(yes|no)", bytes(t for t in answer if t != END).decode())


def test_a_draft_ends_where_the_grammar_does_not_allow_it():
    engine = byte_engine()
    guess = [*b"yes", END, *b"xx"]
    engine.speculator = scripted_speculator(lambda _request, limit: guess[:limit])
    verified = []
    request = constrained(GrammarKind.CHOICE, '["yes, yes", "yes"]', temperature=0.0)
    engine.add_request(asking(request, "ngram", 6))
    launch = engine.executor.launch
    engine.executor.launch = lambda batch: (
        verified.extend(chunk.draft_token_ids for chunk in batch.chunks) or launch(batch)
    )
    run_to_end(engine)
    engine.close()
    assert all(re.match(rb"[yes, ]*\xff?$", bytes(draft)) for draft in verified)
    assert all(END not in draft[:-1] for draft in verified), "nothing is drafted after an end token"


@pytest.mark.parametrize("answer", [None, {"type": "object", "properties": {"a": {"type": "boolean"}}}])
def test_a_thought_is_ended_alike_whatever_drafts(engine, answer):
    mark = Thought(begin_token_ids=tuple(b"<t>"), end="</t>", end_token_ids=tuple(b"</t>"), max_tokens=12)
    spec = StructuralTag(thought=mark, answer=answer).spec()
    requests = [constrained(spec.kind, spec.source, seed=seed) for seed in range(4)]
    plain = generate(engine, *[asking(request, "off") for request in requests])
    for mode in ("auto", "ngram", "draft"):
        assert generate(engine, *[asking(request, mode, 6) for request in requests]) == plain
    for tokens in plain:
        text = bytes(t for t in tokens if t != END)
        assert text.startswith(b"<t>")
        assert text[3:].index(b"</t>") <= 12
        if answer is not None:
            assert set(json.loads(text.split(b"</t>", 1)[1])) <= {"a"}
