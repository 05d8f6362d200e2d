"""Masks against brute force: every string of a small alphabet, and which tokens lead to one that matches."""

import itertools
import json
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLParserLimits

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.sampling.grammar import Grammar
from engine.sampling.grammar_compiler import GrammarCompiler
from engine.sampling.grammar_library import library_grammar, new_matcher
from engine.sampling.token_bitmask import apply_token_bitmask

END, OTHER_END, SPECIAL, EMPTY = 0, 1, 2, 3
TOKENS = [b"<end>", b"ab", b"a", b"", b"a", b"b", b"c", b"ab", b"ba", b"abc", b"cc", b"bab", b"a"]
TOKENS += ["é".encode(), b"\xc3", b"\xa9", b"\xa8", b"1", b"-", b"11", b"1-", b'"', b"a\xff", b"\xff", b"\n"]
SILENT = {END, OTHER_END, SPECIAL, EMPTY}
EVERY_LETTER = 'abcéè1-"\n'
VOCAB_SIZE = len(TOKENS)
PADDING = 3


@pytest.fixture(scope="module")
def compiler():
    compiler = GrammarCompiler(
        TOKENS, end_token_ids=frozenset({END, OTHER_END}), special_token_ids=frozenset({END, SPECIAL})
    )
    yield compiler
    compiler.close()


def regex(source):
    return GrammarSpec(kind=GrammarKind.REGEX, source=source)


def choice(*choices):
    return GrammarSpec(kind=GrammarKind.CHOICE, source=json.dumps(choices))


def lark(source):
    return GrammarSpec(kind=GrammarKind.LARK, source=source)


def allowed(state):
    """Return the token ids that the mask leaves, after checking that it changes nothing else."""
    logits = torch.arange(VOCAB_SIZE + PADDING, dtype=torch.float32)
    apply_token_bitmask(logits, state.token_bitmask())
    kept = torch.isfinite(logits)
    assert torch.equal(logits[kept], torch.arange(VOCAB_SIZE + PADDING, dtype=torch.float32)[kept])
    assert (logits[~kept] == float("-inf")).all()
    token_ids = set(kept.nonzero().flatten().tolist())
    assert token_ids == {i for i in range(-2, VOCAB_SIZE + PADDING + 2) if state.allows(i)}
    return token_ids


def expected(language, text):
    """Return the tokens that may follow `text` when the answer must be in `language`, a set of bytes."""
    may_end = {END, OTHER_END} if text in language else set()
    return may_end | {
        token_id
        for token_id, token in enumerate(TOKENS)
        if token_id not in SILENT and any(match.startswith(text + token) for match in language)
    }


def check_masks(state, language, *, depth, text=b""):
    """Compare masks with brute force in every state up to `depth` tokens from here."""
    tokens = allowed(state)
    assert tokens == expected(language, text), text
    assert state.is_complete == (tokens <= {END, OTHER_END})
    assert state.error is None
    if depth == 0:
        return
    for token_id in tokens - {END, OTHER_END}:
        following = state.copy()
        following.accept(token_id)
        check_masks(following, language, depth=depth - 1, text=text + TOKENS[token_id])
    assert allowed(state) == tokens  # whatever the copies did


def strings(alphabet, length):
    for size in range(length + 1):
        for letters in itertools.product(alphabet, repeat=size):
            yield "".join(letters)


def matches(pattern, alphabet, length):
    compiled = re.compile(pattern)
    return {text.encode() for text in strings(alphabet, length) if compiled.fullmatch(text)}


@pytest.mark.parametrize(
    ("pattern", "alphabet"),
    [
        ("a", "abc"),
        ("abc", "abc"),
        ("a*", "abc"),
        ("(ab|ba)+c?", "abc"),
        ("(a|ab)(c|bcc)", "abc"),
        ("[^b]{2}", EVERY_LETTER),
        ("a.c", EVERY_LETTER),
        ("", "abc"),
        ("^a{2,3}$", "abc"),
        ("(?:cc|a)*b", "abc"),
        ("1+-1?", "1-a"),
        (r"\d-\d", "1-a"),
        ("é*a", "éèa"),
        ("[éè]", "éèa"),
        ("c(?:é|a|)c", "éac"),
        ('"[^"]*"', EVERY_LETTER),
    ],
)
def test_a_regex_allows_what_brute_force_allows(compiler, pattern, alphabet):
    length, depth = (8, 2) if len(alphabet) == 3 else (5, 1)  # the longest token has three letters
    language = matches(pattern, alphabet, length)
    check_masks(compiler.compile(regex(pattern)).start(), language, depth=depth)


# A second reference, exact for answers of any length: derivatives of expressions. None matches nothing, ""
# the empty text, another string itself; (first, second) both in turn, {...} one of them, [inner] many of it.
EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b", "ab", "bab", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, inner),
        st.frozensets(inner, min_size=2, max_size=3),
        inner.map(lambda expression: (MANY, expression)),
    ),
    max_leaves=8,
)
MANY = 0


def pattern_of(expression):
    match expression:
        case str():
            return expression
        case (0, inner):
            return f"(?:{pattern_of(inner)})*"
        case (first, second):
            return pattern_of(first) + pattern_of(second)
    return f"(?:{'|'.join(sorted(map(pattern_of, expression)))})"


def is_nullable(expression):
    match expression:
        case None | str():
            return expression == ""
        case (0, _):
            return True
        case (first, second):
            return is_nullable(first) and is_nullable(second)
    return any(map(is_nullable, expression))


def derivative(expression, letter):
    match expression:
        case None | str():
            return expression[1:] if expression and expression[0] == letter else None
        case (0, inner):
            return then(derivative(inner, letter), expression)
        case (first, second):
            both = then(derivative(first, letter), second)
            return either([both, derivative(second, letter)]) if is_nullable(first) else both
    return either([derivative(inner, letter) for inner in expression])


def then(first, second):
    if first is None:
        return None
    return (first, second) if first else second


def either(expressions):
    kept = {expression for expression in expressions if expression is not None}
    return frozenset(kept) if len(kept) > 1 else next(iter(kept), None)


@settings(max_examples=80, deadline=None)
@given(expression=EXPRESSIONS, picks=st.lists(st.integers(0, 99), max_size=5))
def test_any_regex_allows_what_leads_to_a_match(compiler, expression, picks):
    state = compiler.compile(regex(pattern_of(expression))).start()
    for pick in [*picks, 0]:
        following = {}
        for token_id in set(range(VOCAB_SIZE)) - SILENT:
            rest = expression
            for letter in TOKENS[token_id].decode("latin-1"):
                rest = derivative(rest, letter)
            if rest is not None:
                following[token_id] = rest
        ends = {END, OTHER_END} if is_nullable(expression) else set()
        assert allowed(state) == ends | set(following)
        assert state.is_complete == (not following)
        if not following:
            break
        token_id = sorted(following)[pick % len(following)]
        state.accept(token_id)
        expression = following[token_id]


@pytest.mark.parametrize(
    "choices",
    [
        ["a"],
        ["ab", "abc", "ba"],
        ["a", "a", "aa"],
        ["", "cc"],
        ["é", "èa", '"'],
        ["ab\n", 'a"b', "a-1"],
        ["c" * n for n in range(1, 20)],
    ],
)
def test_a_choice_allows_what_brute_force_allows(compiler, choices):
    language = {text.encode() for text in choices}
    check_masks(compiler.compile(choice(*choices)).start(), language, depth=4)


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(st.text("abcé1-", min_size=1, max_size=6), min_size=1, max_size=6))
def test_any_choice_allows_what_brute_force_allows(compiler, choices):
    language = {text.encode() for text in choices}
    check_masks(compiler.compile(choice(*choices)).start(), language, depth=3)


def test_a_context_free_grammar_allows_what_brute_force_allows(compiler):
    language = {f"{'a' * n}c{'b' * n}".encode() for n in range(12)}
    state = compiler.compile(lark('start: "c" | "a" start "b"')).start()
    check_masks(state, language, depth=4)


def test_left_recursion_is_a_loop(compiler):
    language = {("a" + "-a" * n).encode() for n in range(10)}
    state = compiler.compile(lark('start: start "-" "a" | "a"')).start()
    check_masks(state, language, depth=4)


@pytest.mark.parametrize("choices", [["cccc1"], ["c1", "c11"], ["a", "b"], ["ba", "bab"], ["1-a", "1-c"]])
def test_forced_tokens_are_the_only_way_on(compiler, choices):
    language = {text.encode() for text in choices}
    state = compiler.compile(choice(*choices)).start()
    text, forced = b"", []
    while len(tokens := expected(language, text)) == 1 and not tokens & {END, OTHER_END}:
        forced += tokens
        text += TOKENS[forced[-1]]
    assert state.forced_tokens(100) == forced
    assert state.forced_tokens(1) == forced[:1]
    assert state.forced_tokens(0) == []
    assert allowed(state) == expected(language, b"")


def test_forced_tokens_are_found():
    tokens = [b"", b"x", b"y", b"z"]
    compiler = GrammarCompiler(tokens, end_token_ids=frozenset({0}), special_token_ids=frozenset())
    state = compiler.compile(choice("xyzx", "xyzy")).start()
    assert state.forced_tokens(10) == [1, 2, 3]
    assert state.forced_tokens(2) == [1, 2]
    for token_id in (1, 2, 3, 1):
        assert state.error is None
        state.accept(token_id)
    assert state.is_complete
    assert state.forced_tokens(10) == []  # an end token never is one of them


def test_an_end_token_completes(compiler):
    state = compiler.compile(regex("a*")).start()
    state.accept(4)
    assert not state.is_complete
    state.accept(OTHER_END)
    assert state.is_complete
    assert state.error is None
    assert allowed(state) == {END, OTHER_END}


def test_what_is_not_allowed_ends_the_answer_and_says_so(compiler):
    state = compiler.compile(regex("a+")).start()
    for token_id in (TOKENS.index(b"b"), 5):
        state.accept(token_id)
    assert state.error == f"token {TOKENS.index(b'b')} came, which is not allowed there"
    assert state.is_complete
    assert allowed(state) == {END, OTHER_END}
    assert state.copy().error == state.error
    too_early = compiler.compile(regex("a+")).start()
    too_early.accept(END)
    assert too_early.error is not None
    after_the_end = compiler.compile(regex("a+")).start()
    for token_id in (4, END, 4):
        assert after_the_end.error is None
        after_the_end.accept(token_id)
    assert after_the_end.error is not None


def test_a_copy_goes_its_own_way(compiler):
    state = compiler.compile(regex("(?:ab)*c")).start()
    a, b, c = 4, 5, 6
    copy = state.copy()
    copy.accept(a)
    assert c in allowed(state)
    assert c not in allowed(copy)
    state.accept(c)
    assert state.is_complete
    assert b in allowed(copy)
    second = copy.copy()
    second.accept(b)
    copy.accept(c)  # not allowed
    assert copy.error is not None
    assert second.error is None
    assert c in allowed(second)


def test_a_missing_byte_ends_the_answer_and_says_so(compiler):
    state = compiler.compile(regex("az|b")).start()
    assert b"z" not in b"".join(TOKENS)
    state.accept(4)  # "a"
    assert allowed(state) == {END, OTHER_END}
    assert state.is_complete
    assert "no token of this model" in state.error


@pytest.mark.parametrize("source", ["z", "z+a", "[x-z]"])
def test_a_regex_that_no_token_can_begin_is_refused(compiler, source):
    with pytest.raises(RequestError, match="no token of this model"):
        compiler.compile(regex(source))


def test_special_and_end_tokens_never_stand_for_their_text(compiler):
    assert allowed(compiler.compile(regex("<end>|a")).start()) == {4, 12}
    everything = allowed(compiler.compile(regex(r"(?s:.)*")).start())
    assert not everything & {SPECIAL, EMPTY}
    assert everything >= {END, OTHER_END, 4, 5}
    assert TOKENS.index(b"\xff") not in everything


def test_a_full_lexer_table_changes_nothing(compiler):
    """The table is shared by all answers and bounded; a full one is replaced, whoever filled it."""
    spec = regex("(?:a|b)*a(?:a|b){8}")  # 2**8 states and more; an answer of 30 letters meets 31 of them
    new_small_matcher = small_matchers(compiler, spec, max_lexer_states=100)
    made = []

    def new_matcher():
        made.append(new_small_matcher())
        return made[-1]

    reference = compiler.compile(spec)
    grammar = Grammar(new_matcher, reference._tokens)
    states, twins = [grammar.start() for _ in range(4)], [reference.start() for _ in range(4)]
    generator = random.Random(1)
    for _ in range(30):
        for state, twin in zip(states, twins, strict=True):
            assert allowed(state) == allowed(twin)
            token_id = generator.choice((4, 5))
            state.accept(token_id)
            twin.accept(token_id)
            assert state.error is None
    assert len(made) > 1
    assert allowed(grammar.start()) == allowed(reference.start())  # and new answers can start


def test_a_step_that_needs_more_than_the_limit_ends_the_answer(compiler):
    spec = regex("(?:a|b){0,40}c(?:a|b){8}")
    reference = compiler.compile(spec)
    state = Grammar(small_matchers(compiler, spec, max_lexer_states=8), reference._tokens).start()
    assert state.is_complete
    assert "too many states" in state.error
    assert "\n" not in state.error


def small_matchers(compiler, spec, **limits):
    tokenizer, grammar = compiler._get_tokenizer(), library_grammar(spec)
    limits = LLParserLimits(verbose_errors=False, **limits)
    return lambda: LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def test_a_limit_that_trips_ends_the_answer_and_says_so(compiler):
    state = compiler.compile(lark('start: start start start | start start | "a" | ""')).start()
    num_tokens = 0
    while not state.is_complete:
        state.accept(4)
        num_tokens += 1
    assert 10 < num_tokens < 1000
    assert "items" in state.error
    assert allowed(state) == {END, OTHER_END}


def test_the_library_masks_without_forcing(compiler):
    """Every spelling of a forced text is allowed, not only the one that the library would choose."""
    state = compiler.compile(choice("abc")).start()
    assert allowed(state) == {i for i, token in enumerate(TOKENS) if token in (b"a", b"ab", b"abc")} - SILENT
    tokenizer = compiler._get_tokenizer()
    assert not new_matcher(tokenizer, library_grammar(choice("abc")), GrammarKind.CHOICE).compute_ff_tokens()
