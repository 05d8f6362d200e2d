"""Step shapes: to which sizes steps are padded, so that few graphs serve all of them."""

from typing import NamedTuple

from engine.kernels.cuda.step_buffers import StepShape

_ALIGNMENT = 16
_SMALL = (1, 2, 4, 8)
_TILE_TOKENS = (2, 4, 8, 16, 64)  # a tile of one token marks a decode step


_LONGEST_CAPTURED = 64  # tokens of a prompt


def is_worth_capturing(shape: StepShape) -> bool:
    """Tell whether steps of this shape come often, and compute no longer than they take to launch.

    Those that decode or verify drafts, most of whose tokens have a row; and short prompts.
    """
    return 2 * shape.num_rows >= shape.num_tokens or shape.num_tokens <= _LONGEST_CAPTURED


class ShapeRules(NamedTuple):
    """The largest step, and how wide a query tile may be."""

    max_tokens: int
    max_requests: int
    max_rows: int  # a row for each request, and one for each draft
    max_tile_tokens: int = _TILE_TOKENS[-1]

    def decode(self, num_rows: int) -> StepShape:
        """Return the shape of a step in which each of so many requests runs one token."""
        padded = pad(num_rows)
        return StepShape(padded, padded, 1, padded)

    def of(self, num_tokens: int, longest: int, num_tiles: int, num_rows: int) -> StepShape:
        """Return the shape of a step of any kind, of whose requests the longest runs so many tokens.

        There is always a token of padding where tiles or rows are padded, for these to point to.
        """
        tokens = pad_tokens(num_tokens + 1)
        return StepShape(tokens, pad(num_tiles), self.tile_tokens(longest), pad(num_rows) if num_rows else 0)

    def tile_tokens(self, num_tokens: int) -> int:
        """Return how many tokens of a request go through attention together, where it has so many."""
        wide_enough = [width for width in _TILE_TOKENS if width >= num_tokens]
        return min([*wide_enough, self.max_tile_tokens])

    @property
    def decode_shapes(self) -> list[StepShape]:
        """The shapes of all decode steps, the largest first."""
        sizes = {pad(count) for count in range(1, self.max_requests + 1)}
        return [self.decode(size) for size in sorted(sizes, reverse=True)]

    @property
    def short_shapes(self) -> list[StepShape]:
        """Shapes of few tiles, each of which attention cuts up: verified drafts, short prompts."""
        widths = {self.tile_tokens(width) for width in _TILE_TOKENS if width < 2 * self.max_tokens}
        shapes = [
            self.of(min(count * width, self.max_tokens), width, count, min(count, self.max_rows))
            for width in sorted(widths)
            for count in _SMALL
        ]
        return list(dict.fromkeys(shapes))

    @property
    def largest(self) -> StepShape:
        """The shape of the largest step."""
        longest = self.tile_tokens(self.max_tokens)
        return self.of(self.max_tokens, longest, self.max_tokens, self.max_rows)

    @property
    def max_padded_rows(self) -> int:
        """Rows of the largest step, padding included."""
        return pad(max(self.max_rows, self.max_requests))

    @property
    def max_padded_tokens(self) -> int:
        """Tokens of the largest step, padding included."""
        return max(pad_tokens(self.max_tokens + 1), self.max_padded_rows)


def pad(count: int) -> int:
    """Return the number of rows or tiles that a step of so many is padded to."""
    return next((size for size in _SMALL if size >= count), -(-count // _ALIGNMENT) * _ALIGNMENT)


def pad_tokens(count: int) -> int:
    """Return the number of tokens that a step of so many is padded to: long ones by an eighth at most."""
    step = _ALIGNMENT
    while step * 16 < count:
        step *= 2
    return -(-count // step) * step
