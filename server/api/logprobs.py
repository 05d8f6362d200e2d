"""Logprobs in the shapes of the API: natural logarithms, and which of them a reply has."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.interface.errors import RequestError
from engine.interface.outputs import TokenLogprobs
from engine.interface.sampling_params import MAX_LOGPROBS
from server.api.limits import MAX_LOGPROB_ENTRIES
from server.api.token_scores import ScoredToken
from server.text import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LogprobOptions:
    """Which logprobs a reply has; each number is of the likeliest tokens beside the one in the text."""

    answer: int | None = None
    echo: int | None = None  # of the prompt's tokens, before those of the answer
    prompt: int | None = None  # of the prompt's tokens, in a member of its own

    @property
    def scores_prompt(self) -> bool:
        """True when the reply waits for the prompt's logprobs."""
        return self.echo is not None or self.prompt is not None

    @property
    def engine_prompt_logprobs(self) -> int | None:
        """What the engine is asked for to serve both forms."""
        wanted = [count for count in (self.echo, self.prompt) if count is not None]
        return max(wanted) if wanted else None

    def num_prompt_entries(self, num_tokens: int) -> int:
        """Return how many pairs of token and logprob a reply has for a prompt of `num_tokens`."""
        return sum(num_tokens * (1 + count) for count in (self.echo, self.prompt) if count is not None)

    def max_answer_tokens(self, num_left: int) -> int | None:
        """Return how many tokens of answer have `num_left` entries at most; None: as many as you like."""
        return None if self.answer is None else num_left // (1 + self.answer)


def check_num_logprobs(name: str, value: int | None) -> None:
    """Raise RequestError for a number of likeliest tokens that no reply can have."""
    if value is not None and not 0 <= value <= MAX_LOGPROBS:
        shown = value if abs(value) < 10**20 else "a far larger number"
        raise RequestError(f"{name} must be between 0 and {MAX_LOGPROBS}, got {shown}", param=name)


def check_num_entries(count: int, param: str) -> None:
    """Raise RequestError for more pairs of token and logprob than one reply may hold."""
    if count > MAX_LOGPROB_ENTRIES:
        raise RequestError(
            f"{param} asks for {count} logprobs in one reply, the limit is {MAX_LOGPROB_ENTRIES}: ask for "
            "fewer choices, tokens or top logprobs",
            param=param,
        )


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    r"""Return a token as text, special or not; bytes that are no whole characters as `bytes:\xe2\x80`."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join([f"\\x{byte:02x}" for byte in data])


def completion_logprobs(
    tokens: Sequence[ScoredToken], tokenizer: Tokenizer, *, num_top: int
) -> dict[str, object]:
    """Return the `logprobs` of a completion: four lists, an item for each token.

    An item of top_logprobs has the `num_top` likeliest tokens and the chosen one.
    """
    return {
        "tokens": [token_text(tokenizer, token.token_id) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top_mapping(token, tokenizer, num_top) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _top_mapping(token: ScoredToken, tokenizer: Tokenizer, num_top: int) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for token_id, logprob in (*token.top[:num_top], (token.token_id, token.logprob)):
        top.setdefault(token_text(tokenizer, token_id), logprob)
    return top


def chat_logprobs(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> dict[str, object]:
    """Return the `logprobs` of an answer: its content, token by token."""

    def entry(token_id: int, logprob: float | None) -> dict[str, object]:
        data = tokenizer.token_bytes(token_id)
        return {"token": token_text(tokenizer, token_id), "logprob": logprob, "bytes": list(data)}

    content = [
        {
            **entry(token.token_id, token.logprob),
            "top_logprobs": [entry(token_id, logprob) for token_id, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    scores: Sequence[TokenLogprobs], tokenizer: Tokenizer, *, num_top: int
) -> list[dict[str, object] | None]:
    """Return the member `prompt_logprobs`: null for the first token, then the token itself and the top."""

    def entries(score: TokenLogprobs) -> dict[str, object]:
        pairs = dict([(score.token_id, score.logprob), *score.top[:num_top]])
        return {
            str(token_id): {"logprob": logprob, "decoded_token": token_text(tokenizer, token_id)}
            for token_id, logprob in pairs.items()
        }

    return [None, *(entries(score) for score in scores)]
