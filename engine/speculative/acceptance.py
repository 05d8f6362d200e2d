"""Acceptance: how likely the target takes a draft token, learned from what it took before."""

from dataclasses import dataclass, field

from engine.interface.speculation import DraftSource
from engine.speculative.drafter import Draft

_MEMORY = 0.98  # weight of all earlier trials at each new one: about the last fifty count
_PRIOR_TRIALS = 4.0  # what the shared estimate weighs against a request's own trials
_REQUEST_MEMORY = 0.9
_MATCH_BOUNDS = (2, 3, 4, 6, 10, 20)
_PRIORS = {DraftSource.DRAFT_MODEL: 0.8, DraftSource.NGRAM: 0.5, DraftSource.NGRAM_POOL: 0.5}
_HOPELESS = 0.03  # a place that is reached so rarely is not worth a draft
FORCED = 0.99  # a grammar leaves the target no choice; short of 1, so that longer is never free


@dataclass(slots=True)
class _Rate:
    """A share of successes that forgets."""

    successes: float
    trials: float

    def record(self, success: bool, memory: float) -> None:
        self.successes = self.successes * memory + success
        self.trials = self.trials * memory + 1.0


@dataclass(slots=True)
class RequestAcceptance:
    """What one request's trials say of each source; a text keeps its character for a while.

    Drafts behind a changed word, which match little, say nothing of those behind a long match.
    """

    rates: dict[tuple[DraftSource, bool], _Rate] = field(default_factory=dict)  # bool: behind a changed word

    def rate(self, draft: Draft) -> _Rate:
        """Return the request's own rate of drafts like this one, without trials at first."""
        return self.rates.setdefault((draft.source, draft.match_length == 1), _Rate(0.0, 0.0))

    def fade(self, num_steps: int) -> None:
        """Let the trials count for less after steps in which nothing was drafted."""
        for rate in self.rates.values():
            rate.successes *= _MEMORY**num_steps
            rate.trials *= _MEMORY**num_steps


class AcceptanceTable:
    """Chances that a draft token is accepted, given that all before it were.

    Learned for each source, length of the match and position, over all requests; then bent by what the
    request's own trials say. Priors are worth one trial.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[DraftSource, int, int], _Rate] = {}

    def probabilities(
        self, draft: Draft, own: RequestAcceptance, num_tokens: int, *, with_hopeless: bool = False
    ) -> list[float]:
        """Return, for each place of a draft, the chance that it and all before it are accepted.

        Ends before the places that are hardly ever reached, unless they are wanted too.
        """
        if draft.source is DraftSource.GRAMMAR:
            return [FORCED ** (place + 1) for place in range(num_tokens)]
        rate, bucket = own.rate(draft), match_bucket(draft.match_length)
        own_successes, trials = rate.successes, _PRIOR_TRIALS + rate.trials
        chances, chance = list[float](), 1.0
        for place in range(num_tokens):
            shared = self._rate(draft.source, bucket, place)
            chance *= (_PRIOR_TRIALS * shared.successes / shared.trials + own_successes) / trials
            if chance < _HOPELESS and chances and not with_hopeless:
                break
            chances.append(chance)
        return chances

    def record(self, draft: Draft, own: RequestAcceptance, num_accepted: int) -> None:
        """Take in a verification: places before the first wrong one succeeded, those after say nothing."""
        if draft.source is DraftSource.GRAMMAR:
            return
        rate, bucket = own.rate(draft), match_bucket(draft.match_length)
        for place in range(min(num_accepted + 1, len(draft.token_ids))):
            success = place < num_accepted
            self._rate(draft.source, bucket, place).record(success, _MEMORY)
            rate.record(success, _REQUEST_MEMORY)

    def _rate(self, source: DraftSource, bucket: int, place: int) -> _Rate:
        key = (source, bucket, place)
        rate = self._rates.get(key)
        if rate is None:
            prior = _PRIORS[source] if source is DraftSource.DRAFT_MODEL else 0.2 + 0.1 * bucket
            rate = self._rates[key] = _Rate(prior, 1.0)
        return rate


def match_bucket(match_length: int) -> int:
    """Return the class of a match: longer ones are right more often."""
    return sum(match_length >= bound for bound in _MATCH_BOUNDS)
