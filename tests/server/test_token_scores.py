"""Which character a token begins in, and when its score may go out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.interface.outputs import FinishReason, RequestOutput, TokenLogprobs
from server.api.generation import ChoiceText
from server.api.preparation import TextOptions
from server.api.token_scores import ScoredText, TokenPlaces, score_prompt
from server.text import Tokenizer
from tests.fakes import EOS, IM_START, byte_tokenizer_data

TOKENIZER = Tokenizer(byte_tokenizer_data())


class PieceTokenizer(Tokenizer):
    """A tokenizer whose ids stand for the given pieces of bytes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def is_special(self, token_id: int) -> bool:
        return False

    def decode_bytes(self, token_ids: object, **_options: object) -> bytes:
        return b"".join(self.pieces[token_id] for token_id in token_ids)


def character_of_each_byte(data: bytes) -> list[int]:
    """The slow twin: which character of the decoded text each byte is in."""
    characters: list[int] = []
    position = number = 0
    while position < len(data):
        for length in range(1, 5):
            try:
                data[position : position + length].decode()
                break
            except UnicodeDecodeError:
                pass
        else:
            try:
                data[position:].decode()
            except UnicodeDecodeError as error:
                length = error.end
        characters += [number] * length
        position += length
        number += 1
    return characters


pieces = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=5),
        st.text(min_size=1, max_size=3).map(lambda text: text.encode("utf-8", "replace")),
        st.sampled_from(
            [b"\xf0", b"\x9f", b"\x98\x80", b"\xe2\x82", b"\xac", b"a", b" \xc3", b"\xff", b"\xed", b"\xa0"]
        ),
    ),
    max_size=12,
)


@given(pieces)
def test_an_offset_is_the_character_of_the_tokens_first_byte(parts: list[bytes]) -> None:
    data = b"".join(parts)
    characters = character_of_each_byte(data)
    assert (characters[-1] + 1 if characters else 0) == len(data.decode(errors="replace"))
    places = TokenPlaces(PieceTokenizer(parts), skip_special_tokens=True, start=100)
    position = 0
    for number, part in enumerate(parts):
        place = places.place(number)
        assert place.start == 100 + characters[position]
        position += len(part)
        # An incomplete character counts: the bytes after it may yet belong to it.
        assert place.end >= 100 + characters[position - 1] + 1


def test_places_of_halves_and_of_special_tokens() -> None:
    ids = [*"é".encode(), IM_START, ord("b")]
    shown = TokenPlaces(TOKENIZER, skip_special_tokens=False)
    assert [(p.start, p.end) for p in map(shown.place, ids)] == [(0, 1), (0, 1), (1, 13), (13, 14)]
    hidden = TokenPlaces(TOKENIZER, skip_special_tokens=True)
    assert [(p.start, p.end) for p in map(hidden.place, ids)] == [(0, 1), (0, 1), (1, 1), (1, 2)]


def test_a_prompts_hidden_tokens_stand_at_the_beginning() -> None:
    scores = [TokenLogprobs(97, -1.0, ()), TokenLogprobs(98, -2.0, ())]
    tokens = score_prompt((IM_START, 97, 98), scores, TOKENIZER, num_hidden=1, skip_special_tokens=False)
    assert [(t.token_id, t.offset, t.logprob) for t in tokens] == [
        (IM_START, 0, None),
        (97, 0, -1.0),
        (98, 1, -2.0),
    ]


def run(
    steps: list[list[int]], tokenizer: Tokenizer, options: TextOptions, *, stop_token: bool = False
) -> tuple[str, list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the text, (token id, offset) of each score, and (characters out, tokens out) after each step."""
    choice = ChoiceText(tokenizer, options, ScoredText(tokenizer, skip_special_tokens=True))
    text, tokens, progress = "", [], []
    for number, ids in enumerate(steps, 1):
        is_last = number == len(steps)
        delta = choice.push(
            RequestOutput(
                index=0,
                new_token_ids=tuple(ids),
                logprobs=tuple(TokenLogprobs(token_id, -1.0, ()) for token_id in ids),
                num_cached_tokens=0,
                finish_reason=FinishReason.STOP
                if is_last and stop_token
                else FinishReason.LENGTH
                if is_last
                else None,
                stop_token_id=ids[-1] if is_last and stop_token else None,
            )
        )
        text += delta.text
        tokens += [(token.token_id, token.offset) for token in delta.logprobs]
        progress.append((len(text), len(tokens)))
        if delta.finish_reason is not None:
            break
    return text, tokens, progress


@given(pieces, st.lists(st.text(alphabet="ab€é ", min_size=1, max_size=3), max_size=2), st.booleans())
def test_scores_are_cut_where_the_text_is_and_however_it_came(
    parts: list[bytes], stop: list[str], include_stop: bool
) -> None:
    if not parts:
        return
    tokenizer = PieceTokenizer(parts)
    options = TextOptions(stop=tuple(stop), include_stop=include_stop)
    one_by_one = run([[i] for i in range(len(parts))], tokenizer, options)
    at_once = run([list(range(len(parts)))], tokenizer, options)
    assert one_by_one[:2] == at_once[:2]
    text, tokens, progress = one_by_one
    assert [token_id for token_id, _ in tokens] == list(range(len(tokens)))
    spelt = b"".join(parts[: len(tokens)]).decode(errors="replace")
    if len(tokens) == len(parts) and not stop:
        assert spelt == text
    assert spelt.rstrip("\N{REPLACEMENT CHARACTER}").startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert all(offset < len(text) for _, offset in tokens)
    for num_chars, num_tokens in progress[:-1]:  # a score never comes before its text
        assert all(offset < num_chars for _, offset in tokens[:num_tokens])


def test_held_back_text_holds_back_its_scores() -> None:
    options = TextOptions(stop=("STOP",))
    _, tokens, progress = run([[byte] for byte in b"abSTx"], TOKENIZER, options)
    assert progress == [(1, 1), (2, 2), (2, 2), (2, 2), (5, 5)]
    assert [offset for _, offset in tokens] == [0, 1, 2, 3, 4]


def test_half_a_character_waits_for_its_rest() -> None:
    _, _, progress = run([[byte] for byte in "é😀".encode()], TOKENIZER, TextOptions())
    assert progress == [(0, 0), (1, 2), (1, 2), (1, 2), (1, 2), (2, 6)]
    text, tokens, _ = run([[byte] for byte in "é😀".encode()[:4]], TOKENIZER, TextOptions())
    assert (text, len(tokens)) == ("é\N{REPLACEMENT CHARACTER}", 4)


@pytest.mark.parametrize(("include_stop", "num_scored"), [(False, 2), (True, 3)])
def test_the_end_token_has_a_score_only_if_it_is_kept(include_stop: bool, num_scored: int) -> None:
    options = TextOptions(include_stop=include_stop)
    text, tokens, _ = run([[97], [98, EOS]], TOKENIZER, options, stop_token=True)
    assert text == "ab"
    assert len(tokens) == num_scored


def test_the_mean_logprob_counts_every_generated_token() -> None:
    choice = ChoiceText(TOKENIZER, TextOptions(stop=("c",)))
    assert choice.mean_logprob == 0.0
    scores = tuple(TokenLogprobs(byte, -float(i), ()) for i, byte in enumerate(b"abcd"))
    choice.push(RequestOutput(index=0, new_token_ids=tuple(b"abcd"), logprobs=scores, num_cached_tokens=0))
    assert choice.mean_logprob == -1.0  # of a, b and c: d came after the stop string
