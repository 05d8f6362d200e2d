"""StepCosts: seconds of a forward pass by its number of tokens, measured and kept current."""

from bisect import bisect_left
from itertools import accumulate

SIZES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)
_TYPICAL_FREE = 4.0  # before anything is measured: so many tokens for about the price of one
_MOST_SURPRISE = 2.0  # an observation further off than this is an interruption, not a price
_LEVEL_RATE = 0.15  # weights of a new observation; a surprise is more likely the machine's than a size's
_SHAPE_RATE = 0.05
_FEE_RATE = 0.1  # of a draft's fee: the first drafts of all run code that nothing has run before
_LEVEL_RATE_WITH_DRAFTS = 0.02  # what a step with drafts says of the machine rather than of drafts


class StepCosts:
    """A level (what the machine does now) times a shape (how cost grows with the number of tokens).

    A machine that slows down as a whole moves the level, which all sizes share; so prices of sizes that
    have not run lately stay comparable with those that have. Steps with drafts pay a fee for each draft
    on top, learned apart: several tokens of one request may cost more, or less, than as many requests with
    one each.
    """

    def __init__(self) -> None:
        self._shape = [max(1.0, 0.9 + 0.1 * size, size / _TYPICAL_FREE) for size in SIZES]
        self._rising = (
            self._shape
        )  # the shape without dips: what a smaller size costs, a larger one costs too
        self._fee = 0.0  # of each draft, in units of the level
        self._level = 0.0  # 0: nothing measured yet

    @property
    def is_measured(self) -> bool:
        """True once there is any observation."""
        return self._level > 0.0

    def seconds(self, num_tokens: int, num_drafts: int = 0) -> float:
        """Return the expected seconds of a pass over so many tokens, which verifies so many drafts.

        More tokens never cost less.
        """
        relative = self._relative(num_tokens)
        return (self._level or 1.0) * max(0.5 * relative, relative + self._fee * num_drafts)

    def set_measured(self, seconds: dict[int, float]) -> None:
        """Take over the prices measured at start-up, by number of tokens, for sizes of SIZES."""
        self._level = seconds[min(seconds)]
        known = [(size, seconds[size] / self._level) for size in SIZES if size in seconds]
        last_size, last = known[-1]
        for place, size in enumerate(SIZES):
            self._shape[place] = seconds.get(size, 0.0) / self._level or last * size / last_size
        self._rising = list(accumulate(self._shape, max))

    def observe(self, num_tokens: int, seconds: float, num_drafts: int = 0) -> None:
        """Take in what a pass really took."""
        if not self.is_measured:
            self._level = seconds / self._relative(num_tokens)
            return
        expected = self.seconds(num_tokens, num_drafts)
        surprise = min(_MOST_SURPRISE, max(1.0 / _MOST_SURPRISE, seconds / expected))
        if num_drafts:
            self._fee += _FEE_RATE * (surprise - 1.0) * expected / self._level / num_drafts
            self._level *= surprise**_LEVEL_RATE_WITH_DRAFTS
        else:
            self._level *= surprise**_LEVEL_RATE
            self._bend(num_tokens, surprise)

    def _bend(self, num_tokens: int, surprise: float) -> None:
        """Move the shape at the sizes around a number of tokens."""
        high = min(bisect_left(SIZES, num_tokens), len(SIZES) - 1)
        low = high if SIZES[high] <= num_tokens else max(0, high - 1)
        for place in {low, high}:
            self._shape[place] *= surprise**_SHAPE_RATE
        self._rising = list(accumulate(self._shape, max))

    def _relative(self, num_tokens: int) -> float:
        place = bisect_left(SIZES, num_tokens)
        if place == len(SIZES):
            return self._rising[-1] * num_tokens / SIZES[-1]
        above = self._rising[place]
        if SIZES[place] == num_tokens or place == 0:
            return above
        below, low, high = self._rising[place - 1], SIZES[place - 1], SIZES[place]
        return below + (above - below) * (num_tokens - low) / (high - low)
