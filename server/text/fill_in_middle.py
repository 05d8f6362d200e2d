"""Fill in the middle: the tokens with which code models were trained to write between two texts.

prefix_token text before it suffix_token text behind it middle_token -> what stands between (arXiv 2207.14255)
"""

from dataclasses import dataclass

from server.text.tokenizer import Tokenizer

_TOKENS: tuple[tuple[str, ...], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    tuple(f"<\uff5cfim\u2581{place}\uff5c>" for place in ("begin", "hole", "end")),  # DeepSeek-Coder
)
_ENDS = ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<fim_pad>", "<fim-pad>", "<file_sep>")
"""What such a model writes where the middle is over and another file would begin."""


@dataclass(frozen=True, kw_only=True)
class FillInMiddle:
    """The tokens of one vocabulary."""

    prefix_token_id: int
    suffix_token_id: int
    middle_token_id: int
    end_token_ids: frozenset[int]  # they end an answer, beside the model's own

    def prompt(self, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> tuple[int, ...]:
        """Return the prompt after which the middle follows."""
        return (self.prefix_token_id, *prefix, self.suffix_token_id, *suffix, self.middle_token_id)


def find_fill_in_middle(tokenizer: Tokenizer) -> FillInMiddle | None:
    """Return the tokens if the vocabulary has all three of some family."""
    for texts in _TOKENS:
        prefix, suffix, middle = (tokenizer.find_whole(text) for text in texts)
        if prefix is not None and suffix is not None and middle is not None:
            ends = (tokenizer.find_whole(text) for text in _ENDS)
            return FillInMiddle(
                prefix_token_id=prefix,
                suffix_token_id=suffix,
                middle_token_id=middle,
                end_token_ids=frozenset(token_id for token_id in ends if token_id is not None),
            )
    return None
