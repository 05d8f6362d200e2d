"""Prompts for load tests: built from a word list and a seed, so that every server gets the same bytes."""

import random

WORDS = """
river stone lamp garden winter paper copper signal engine window market harbour cloud table silver
forest letter bridge valley circle number pocket summer candle mirror island wagon timber anchor basket
carry listen follow gather measure travel answer wonder finish borrow polish settle whisper promise
quiet narrow bright heavy early distant gentle simple hollow golden ancient steady hidden careful
""".split()


def words(seed: object, count: int) -> str:
    """`count` words with some punctuation; about 1.1 tokens a word."""
    rng = random.Random(str(seed))
    return " ".join(
        rng.choice(WORDS) + ("." if i % 12 == 11 else "," if i % 7 == 6 else "") for i in range(count)
    )


def prompt(seed: object, num_tokens: int) -> str:
    """A prompt of about `num_tokens` tokens that no other seed shares a prefix with."""
    return f"{seed}: " + words(seed, int(num_tokens / 1.17))


def shared_prefix_prompts(seed: object, num_tokens: int, count: int) -> list[str]:
    """Prompts that share about `num_tokens` tokens and differ in the last few."""
    prefix = prompt(seed, num_tokens)
    return [f"{prefix}\nQuestion {i}: {words((seed, i), 6)}?" for i in range(count)]
