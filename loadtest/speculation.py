"""Speculation on against off through HTTP, interleaved in one run: speed, acceptance by position.

    python -m loadtest.speculation [--rounds 5] [--cases copy,edit,repeat,list,chat,pair] [--pair FOLDER]

Starts a server of its own and alternates, round by round, requests with `speculation` off and on: the same
server, weights and seeds. FOLDER has a pair as target/ and draft/; by default that of the tests. Answers are
compared as well. Prints medians and one JSON line; `ratio` is tokens per second on over off.
"""

import argparse
import asyncio
import json
import statistics
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.environment import environment
from loadtest.http_load import StreamTiming, stream_completion
from loadtest.server_process import end_servers_on_signals, running_draftline
from loadtest.workloads import copy_prompt, misspelled, words

PORT = 8124
BASE_URL = f"http://127.0.0.1:{PORT}"
PAIR = Path(__file__).parents[1] / "tests/assets/pair"
DEFAULT_MODEL = "smollm2-135m-instruct"
PAIR_PROMPTS = ("The ", "In the ", "When she ", "They said ", "And then ", "There was ")


@dataclass(frozen=True)
class Case:
    """What is asked, with which speculation, by how many streams at once."""

    name: str
    speculation: Mapping[str, object]
    num_streams: int = 1
    max_tokens: int = 128
    temperature: float = 0.0
    ends: bool = False  # where the model would end it

    def body(self, round_number: int, stream: int, *, is_on: bool) -> dict[str, object]:
        """Return the request of one stream; on and off ask the same."""
        return {
            "prompt": _PROMPTS[self.name.split("_")[0]](f"{round_number}/{stream}"),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "ignore_eos": not self.ends,
            "seed": 1000 * round_number + stream,
            "cache_salt": f"{self.name}/{round_number}/{is_on}",  # neither finds what the other left behind
            "speculation": self.speculation if is_on else {"mode": "off"},
        }


def copied_prompt(seed: str) -> str:
    """A paragraph twice and its beginning once more: the model goes on copying it."""
    return copy_prompt(seed, 150)


def repeat_prompt(seed: str) -> str:
    """Random words to be repeated, which a small model begins to do; half of the time it loses its place."""
    text = words(seed, 120)
    chat = f"<|im_start|>user\nRepeat this text exactly, word for word:\n\n{text}<|im_end|>\n"
    return f"{chat}<|im_start|>assistant\n{' '.join(text.split()[:6])}"


def edit_prompt(seed: str) -> str:
    """Six sentences with a few misspelled words, to be corrected: most of the text stays."""
    text = misspelled(seed, 6)
    chat = f"<|im_start|>user\nCorrect the spelling mistakes in this text:\n\n{text}<|im_end|>\n"
    return f"{chat}<|im_start|>assistant\n{' '.join(text.split()[:3])}"


def list_prompt(seed: str) -> str:
    """Lines of random words to repeat but for one letter, which a small model fails at: it strays."""
    lines = [words((seed, i), 9) for i in range(10)]
    text = "\n".join(f"{i + 1}. {line}" for i, line in enumerate(lines))
    changed = f"1. {lines[0].replace('e', 'E', 1)}\n2."
    chat = (
        f"<|im_start|>user\nRewrite this list with one letter E in line 1 made large:\n\n{text}<|im_end|>\n"
    )
    return f"{chat}<|im_start|>assistant\n{changed}"


def chat_prompt(seed: str) -> str:
    """An ordinary question, whose answer is in no prompt."""
    question = f"Write a short story about {words(seed, 5)}"
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def pair_prompt(seed: str) -> str:
    """The beginning of a sentence in the kind of text that the pair has learned."""
    number = sum(seed.encode())
    return PAIR_PROMPTS[number % len(PAIR_PROMPTS)]


_PROMPTS = {
    "copy": copied_prompt,
    "edit": edit_prompt,
    "repeat": repeat_prompt,
    "list": list_prompt,
    "chat": chat_prompt,
    "pair": pair_prompt,
}
_AUTO = {"mode": "auto"}
CASES = [
    Case("copy", {"mode": "ngram"}),
    Case("edit", {"mode": "ngram"}, max_tokens=160, ends=True),
    Case("repeat", {"mode": "ngram"}),
    Case("list", {"mode": "ngram"}),
    *(Case(f"chat_{n}", _AUTO, num_streams=n, temperature=0.8) for n in (1, 4, 16)),
]
PAIR_CASES = [
    Case("pair_greedy", {"mode": "draft", "k": 5}),
    Case("pair_sampled", {"mode": "draft", "k": 4}, temperature=0.8),
    *(Case(f"pair_auto_{n}", _AUTO, num_streams=n, temperature=0.8) for n in (1, 4, 16)),
]


async def run_streams(bodies: Sequence[Mapping[str, object]]) -> list[StreamTiming]:
    """Run all requests of a round at once."""
    return await asyncio.gather(*(stream_completion(BASE_URL, body) for body in bodies))


def accepted_by_position() -> list[list[float]]:
    """Return the server's counts of drafted and of accepted tokens by position."""
    counts: dict[str, dict[int, float]] = {"draft": {}, "accepted": {}}
    text = urllib.request.urlopen(f"{BASE_URL}/metrics", timeout=10).read().decode()
    for line in text.splitlines():
        for kind, values in counts.items():
            if line.startswith(f"draftline_spec_decode_num_{kind}_tokens_per_pos_total"):
                values[int(line.split('position="')[1].split('"')[0])] = float(line.split()[-1])
    return [[values[place] for place in sorted(values)] for values in counts.values()]


def run_once(case: Case, number: int, *, is_on: bool) -> tuple[float, list[str]]:
    """Return the tokens per second of one round, and its answers."""
    bodies = [case.body(number, stream, is_on=is_on) for stream in range(case.num_streams)]
    timings = asyncio.run(run_streams(bodies))
    if case.num_streams == 1:
        return timings[0].decode_rate, [timings[0].text]
    rate = sum(t.completion_tokens for t in timings) / max(t.total for t in timings)
    return rate, [timing.text for timing in timings]


def run_case(case: Case, rounds: int) -> dict[str, object]:
    """Alternate off and on, who begins changing every round."""
    rates: defaultdict[bool, list[float]] = defaultdict(list)
    run_once(case, -1, is_on=False)
    run_once(case, -1, is_on=True)
    before = accepted_by_position()
    num_different = 0
    for number in range(rounds):
        texts = {}
        for is_on in (number % 2 == 0, number % 2 == 1):
            rate, texts[is_on] = run_once(case, number, is_on=is_on)
            rates[is_on].append(rate)
        num_different += sum(a != b for a, b in zip(texts[True], texts[False], strict=True))
    counts = zip(*before, *accepted_by_position(), strict=True)
    shares = [(a1 - a0) / (d1 - d0) for d0, a0, d1, a1 in counts if d1 > d0]
    ratios = [on / off for on, off in zip(rates[True], rates[False], strict=True)]
    return {
        "off_tok_s": round(statistics.median(rates[False]), 1),
        "on_tok_s": round(statistics.median(rates[True]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "accepted_by_position": [round(share, 3) for share in shares],
        "different_answers": num_different,
    }


def run_cases(cases: Sequence[Case], rounds: int, model: str, draft_model: str | None) -> dict[str, object]:
    """Run cases on one server."""
    results: dict[str, object] = {}
    flags = () if draft_model is None else ("--draft-model", draft_model)
    with running_draftline(model, PORT, *flags):
        for case in cases:
            result = results[case.name] = run_case(case, rounds)
            print(
                f"{case.name:14} off {result['off_tok_s']:8} on {result['on_tok_s']:8} tok/s  "
                f"ratio {result['ratio']}  accepted {result['accepted_by_position']}"
            )
    return results


def main() -> None:
    """Run what was asked for, print a table and the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default="copy,edit,repeat,list,chat,pair")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--pair", type=Path, default=PAIR, help="folder with target/ and draft/")
    options = parser.parse_args()
    wanted = [case for case in CASES if case.name.split("_")[0] in options.cases.split(",")]
    results: dict[str, object] = {}
    if wanted:
        results |= run_cases(wanted, options.rounds, options.model, None)
    if "pair" in options.cases.split(","):
        target, draft = (str(options.pair / name) for name in ("target", "draft"))
        results |= run_cases(PAIR_CASES, options.rounds, target, draft)
    print(json.dumps({"benchmark": "speculation", "rounds": options.rounds} | environment() | results))


if __name__ == "__main__":
    end_servers_on_signals()
    main()
