"""SampledRow: what choosing one token must know of the tokens before it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.request import GrammarState, Request
from engine.sampling_params import SamplingParams


class SampledRow(Protocol):
    """A place in an answer whose token is to be chosen: a Request's next, or one after some drafts."""

    @property
    def params(self) -> SamplingParams: ...  # noqa: D102

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def choice(self) -> int: ...  # noqa: D102

    @property
    def stop_token_ids(self) -> frozenset[int]: ...  # noqa: D102

    @property
    def token_ids(self) -> Sequence[int]:
        """Prompt and answer up to this place."""

    @property
    def num_tokens(self) -> int:
        """Number of token_ids, which is also the position that noise is drawn for."""

    @property
    def num_prompt_tokens(self) -> int: ...  # noqa: D102

    @property
    def num_output_tokens(self) -> int: ...  # noqa: D102

    @property
    def answer_counts(self) -> Mapping[int, int]:
        """How often each token is in the answer; kept only for penalties."""

    @property
    def grammar_state(self) -> GrammarState | None:
        """The grammar after all of token_ids."""


class DraftRow:
    """The request as it will be if these drafts are accepted: what samples the token after them."""

    __slots__ = ("choice", "draft_token_ids", "grammar_state", "params", "request", "seed", "stop_token_ids")

    def __init__(
        self, request: Request, draft_token_ids: tuple[int, ...], grammar_state: GrammarState | None
    ) -> None:
        self.request = request
        self.draft_token_ids = draft_token_ids
        self.grammar_state = grammar_state
        self.params = request.params
        self.seed, self.choice = request.seed, request.choice
        self.stop_token_ids = request.stop_token_ids

    @property
    def token_ids(self) -> list[int]:
        """Prompt, answer and drafts; built anew, for the few parameters that look back."""
        return [*self.request.token_ids, *self.draft_token_ids]

    @property
    def num_tokens(self) -> int:
        """Length of prompt, answer and drafts."""
        return self.request.num_tokens + len(self.draft_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self.request.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        """Length of the answer, drafts included."""
        return self.request.num_output_tokens + len(self.draft_token_ids)

    @property
    def answer_counts(self) -> Counter[int]:
        """How often each token is in the answer, drafts included."""
        return self.request.answer_counts + Counter(self.draft_token_ids)

    def followed_by(self, token_id: int) -> "DraftRow":
        """Return the row after one more draft token, which the grammar must allow."""
        state = self.grammar_state
        if state is not None:
            state = state.copy()
            state.accept(token_id)
        return DraftRow(self.request, (*self.draft_token_ids, token_id), state)


def rows_with_drafts(request: Request, draft_token_ids: Sequence[int]) -> list[SampledRow]:
    """Return the row of the request's next token, then the row after each draft."""
    rows: list[SampledRow] = [request]
    row = DraftRow(request, (), request.grammar_state)
    for token_id in draft_token_ids:
        row = row.followed_by(token_id)
        rows.append(row)
    return rows
