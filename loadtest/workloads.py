"""Prompts for load tests: built from a word list and a seed, so that every server gets the same bytes."""

import csv
import random
from pathlib import Path

TRACE = Path(__file__).parent / "traces" / "chat_lengths.csv"

WORDS = """
river stone lamp garden winter paper copper signal engine window market harbour cloud table silver
forest letter bridge valley circle number pocket summer candle mirror island wagon timber anchor basket
carry listen follow gather measure travel answer wonder finish borrow polish settle whisper promise
quiet narrow bright heavy early distant gentle simple hollow golden ancient steady hidden careful
""".split()


SENTENCES = """
The museum opens at nine in the morning and closes at five in the afternoon.
Visitors should leave large bags and umbrellas in the cloakroom beside the entrance.
Photographs are allowed in most rooms, but please do not use a flash near the paintings.
Guided tours start every hour and take about forty minutes.
The cafe on the second floor serves soup, sandwiches and fresh coffee.
Children under twelve may enter without a ticket if an adult comes with them.
The library keeps more than three thousand letters written by the founder.
On Mondays the east wing is closed for cleaning and repairs.
A lift near the main stairs reaches every floor of the building.
Students can borrow a notebook and pencils at the information desk.
The garden behind the house is open from April until the end of October.
Parking is free for two hours in the street north of the square.
Tickets for the evening concert are sold at the counter from six o'clock.
Please keep your voice low in the reading room, where people are working.
The shop sells books, postcards and small copies of the famous blue vase.
""".strip().splitlines()


def misspelled(seed: object, num_sentences: int) -> str:
    """Return different sentences in which every tenth word or so has two letters in the wrong order."""
    text = " ".join(random.Random(str(seed)).sample(SENTENCES, num_sentences)).split()
    return " ".join(
        word[:2] + word[3] + word[2] + word[4:] if i % 9 == 4 and len(word) > 4 else word
        for i, word in enumerate(text)
    )


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


def mixed_lengths(seed: object, count: int) -> list[tuple[int, int]]:
    """Draw (prompt tokens, answer tokens) pairs from the trace in traces/chat_lengths.csv."""
    rng, trace = random.Random(f"lengths {seed}"), read_trace()
    return [rng.choice(trace) for _ in range(count)]


def read_trace() -> list[tuple[int, int]]:
    """Read the (prompt tokens, answer tokens) pairs of the trace."""
    with TRACE.open(newline="") as file:
        return [(int(row["prompt_tokens"]), int(row["answer_tokens"])) for row in csv.DictReader(file)]


def copy_prompt(seed: object, num_tokens: int) -> str:
    """A paragraph, the same paragraph again, and its beginning: a model goes on copying it."""
    paragraph = words(seed, int(num_tokens / 1.17))
    return f"{paragraph}.\n\n{paragraph}.\n\n{' '.join(paragraph.split()[:8])}"


def edit_messages(seed: object, num_tokens: int) -> list[dict[str, str]]:
    """A request to return a text with one word replaced: most of the answer stands in the prompt."""
    text = words(seed, int(num_tokens / 1.17))
    old = text.split()[0].strip(".,")
    instruction = f"Repeat this text word for word, but write 'lantern' instead of '{old}':\n\n{text}"
    return [{"role": "user", "content": instruction}]
