"""The controller: how many tokens of each draft to verify, so that tokens per second are the most.

With N requests to decode, n tokens in the step anyway and drafts whose places survive with chances S, the
step is expected to bring N + sum(S) tokens in V(n + drafts) + D + B seconds. V and D are measured prices of
the target's pass and of drafting, B is what passes between two steps. Places are taken in order of their
chances, and of all the ways to stop the one of the highest rate wins: nothing, where a pass costs as much as
its tokens, as in large batches.
(The rule of SmartSpec, arXiv 2406.14066.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.speculative.step_costs import StepCosts

PROBE_INTERVAL = 64
"""Least steps between tries that do not seem to pay."""

_PROBE_SHARE = 0.015  # of the time since the last draft, which a try may cost
PLAIN_INTERVAL = 100
"""Steps with drafts after which one goes without, so that the price of doing nothing stays known."""

_MARGIN = 1.02  # what is promised must beat doing nothing by this
_PROBE_TOKENS = 3
_TRIED_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)
_BIAS_MEMORY = 0.98
_PREPARATION_MEMORY = 0.9
_BETWEEN_MEMORY = 0.95
_MOST_BETWEEN = 1.0  # of the step's own seconds
_MOST_SURPRISE = 2.0
_FIRST_PREPARATION = 50e-6  # seconds
_LEAST_BIAS, _MOST_BIAS = 0.5, 1.5


@dataclass(slots=True)
class Candidate:
    """A draft that could be verified, or made, for one request."""

    probabilities: Sequence[float]  # that each place, and all before it, is accepted: never rising
    is_fixed: bool = False  # the request names its length
    needs_model: bool = False  # the draft model has to make it, one pass for each place
    num_catch_up_tokens: int = 0  # that the draft model has to read first
    num_remaining_steps: int = 1  # over which reading them pays off


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What the step does in any case."""

    num_tokens: int
    num_decodes: int  # requests that will get a token


class Controller:
    """Chooses draft lengths; all it knows is prices and chances."""

    def __init__(self, target_costs: StepCosts, draft_costs: StepCosts) -> None:
        self.target_costs = target_costs
        self.draft_costs = draft_costs
        self._steps_since_draft = 0
        self._seconds_since_draft = 0.0
        self._next_try = PROBE_INTERVAL
        self._steps_since_plain = 0
        self._preparation = (
            _FIRST_PREPARATION  # seconds that each of the model's drafts takes beside its passes
        )
        self._between = 0.0  # seconds from one step to the next, which fewer steps save
        self._bias = 1.0  # measured over promised gain: a guard against prices and chances that are wrong

    def record_step(self, seconds: float, between: float = 0.0) -> None:
        """Count a step, with drafts or without, and learn what passes between two steps."""
        self._steps_since_draft += 1
        self._seconds_since_draft += seconds
        if between:
            between = min(between, _MOST_BETWEEN * seconds)  # more is an interruption
            self._between = self._between * _BETWEEN_MEMORY + between * (1.0 - _BETWEEN_MEMORY)

    def could_pay(self, load: StepLoad, num_drafts: int, length: int) -> bool:
        """Tell whether even drafts that are right to their ends would pay, or it is time to try.

        So deciding takes microseconds, however large the batch.
        """
        if self._steps_since_draft >= self._next_try:
            self._next_try = self._steps_since_draft + PROBE_INTERVAL
            return True
        least = _MARGIN * load.num_decodes / (self.target_costs.seconds(load.num_tokens) + self._between)
        for num_tokens in _TRIED_SIZES:
            if num_tokens <= num_drafts * length:
                seconds = self.target_costs.seconds(load.num_tokens + num_tokens, -(-num_tokens // length))
                if load.num_decodes + num_tokens > least * (seconds + self._between):
                    return True
        return False

    def choose(self, candidates: Sequence[Candidate], load: StepLoad) -> list[int]:
        """Return a length for each candidate, 0 for those not worth their price."""
        lengths = [len(c.probabilities) if c.is_fixed else 0 for c in candidates]
        free = [number for number, c in enumerate(candidates) if not c.is_fixed and c.probabilities]
        if free:
            self._extend(lengths, free, candidates, load)
        if self._steps_since_plain >= PLAIN_INTERVAL:
            lengths = [len(c.probabilities) if c.is_fixed else 0 for c in candidates]
        elif free and not any(lengths):
            self._probe(lengths, free, candidates, load)
        if any(lengths):
            self._steps_since_draft, self._seconds_since_draft, self._next_try = 0, 0.0, PROBE_INTERVAL
            self._steps_since_plain += 1
        else:
            self._steps_since_plain = 0
        return lengths

    def _probe(
        self, lengths: list[int], free: Sequence[int], candidates: Sequence[Candidate], load: StepLoad
    ) -> None:
        """Try the likeliest draft after all, once enough time has passed that its price is lost in it."""
        plain = self.target_costs.seconds(load.num_tokens)
        if self._steps_since_draft < PROBE_INTERVAL:
            return
        number = max(free, key=lambda number: candidates[number].probabilities[0])
        drafting = _Drafting(self.draft_costs, self._preparation)
        for place in range(min(_PROBE_TOKENS, len(candidates[number].probabilities))):
            drafting.add(replace(candidates[number], num_remaining_steps=1), place)
            seconds = self.target_costs.seconds(load.num_tokens + place + 1, 1) - plain
            seconds += drafting.seconds
            if seconds > _PROBE_SHARE * self._seconds_since_draft:
                break
            lengths[number] = place + 1

    def rate(self, candidate: Candidate, load: StepLoad) -> float:
        """Return the most tokens per second that this draft alone would bring."""
        lengths = [0]
        return self._extend(lengths, [0], [candidate], load)

    def record(self, *, expected_tokens: float, num_tokens: int, num_decodes: int) -> None:
        """Compare what a step with drafts brought with what was expected of it."""
        gain, promised = num_tokens - num_decodes, expected_tokens - num_decodes
        if promised > 0:
            measured = (num_decodes + gain) / (num_decodes + promised)
            bias = self._bias * _BIAS_MEMORY + measured * (1.0 - _BIAS_MEMORY)
            self._bias = min(_MOST_BIAS, max(_LEAST_BIAS, bias))

    def passes_seconds(self, candidates: Sequence[Candidate], lengths: Sequence[int]) -> float:
        """Return the price of the draft model's passes for drafts of these lengths; 0 if it makes none."""
        price = self.draft_costs.seconds
        seconds, width = 0.0, 0
        for place in range(max(lengths, default=0), 0, -1):  # from the last pass, of the longest drafts alone
            width += lengths.count(place)
            seconds += price(width)
        for candidate in candidates:
            if candidate.num_catch_up_tokens > 1:
                seconds += price(candidate.num_catch_up_tokens) - price(1)
        return seconds

    def record_drafting(self, passes_seconds: float, num_drafts: int, seconds: float) -> None:
        """Learn what the preparation of drafts takes, from the seconds that all of it took."""
        each = max(0.0, seconds - passes_seconds) / num_drafts
        each = min(each, _MOST_SURPRISE * max(self._preparation, _FIRST_PREPARATION))
        self._preparation *= _PREPARATION_MEMORY
        self._preparation += each * (1.0 - _PREPARATION_MEMORY)

    def _extend(
        self, lengths: list[int], free: Sequence[int], candidates: Sequence[Candidate], load: StepLoad
    ) -> float:
        """Lengthen the free drafts as long as it pays; return the rate that is reached."""
        places = sorted(
            (
                (-chance, number, place)
                for number in free
                for place, chance in enumerate(candidates[number].probabilities)
            ),
        )
        fixed = [c for c in candidates if c.is_fixed]
        num_tokens = load.num_tokens + sum(len(c.probabilities) for c in fixed)
        num_drafts = len(fixed)
        expected = load.num_decodes + sum(sum(c.probabilities) for c in fixed)
        best_rate = _MARGIN * expected / (self.target_costs.seconds(num_tokens, num_drafts) + self._between)
        drafting = _Drafting(self.draft_costs, self._preparation)
        best_count, gained, bias = 0, 0.0, min(1.0, self._bias)
        for count, (negative_chance, number, place) in enumerate(places, start=1):
            gained -= negative_chance
            drafting.add(candidates[number], place)
            num_drafts += place == 0
            seconds = self.target_costs.seconds(num_tokens + count, num_drafts)
            rate = (expected + bias * gained) / (seconds + drafting.seconds + self._between)
            if rate > best_rate:
                best_rate, best_count = rate, count
        for _, number, place in places[:best_count]:
            lengths[number] = place + 1
        return best_rate


class _Drafting:
    """The price of making the drafts taken so far: passes of the draft model over the requests at once."""

    def __init__(self, costs: StepCosts, preparation: float) -> None:
        self._costs = costs
        self._preparation = preparation  # of each draft
        self._widths: list[int] = []  # requests that draft at each place
        self.seconds = 0.0  # what all of it takes

    def add(self, candidate: Candidate, place: int) -> None:
        """Take one more place of a draft."""
        if not candidate.needs_model:
            return
        if place == 0:
            self.seconds += self._preparation
            if candidate.num_catch_up_tokens > 1:
                seconds = self._costs.seconds(candidate.num_catch_up_tokens) - self._costs.seconds(1)
                self.seconds += seconds / candidate.num_remaining_steps
        if place == len(self._widths):
            self._widths.append(0)
        else:
            self.seconds -= self._costs.seconds(self._widths[place])
        self._widths[place] += 1
        self.seconds += self._costs.seconds(self._widths[place])
