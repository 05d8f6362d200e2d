"""What a load test reads out of a stream."""

from loadtest.answer import read_answer

CHUNKS = [
    b'data: {"choices":[{"index":0,"text":"one"}]}',
    b"",
    b'data: {"choices":[{"index":0,"text":" two three","token_ids":[4,5]}]}',
    b'data: {"choices":[{"index":0,"delta":{"content":" four"}}]}',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}',
    b"data: [DONE]",
]


def test_a_whole_answer():
    answer = read_answer(CHUNKS)
    assert answer.is_complete
    assert "".join(answer.text) == "one two three four"
    assert (answer.prompt_tokens, answer.answer_tokens, answer.seen_tokens) == (7, 5, 4)
    assert answer.times == sorted(answer.times)


def test_an_answer_that_is_left_counts_the_tokens_of_its_chunks():
    answer = read_answer(CHUNKS, leave_after=2)
    assert not answer.is_complete
    assert answer.seen_tokens == 3
