"""Two running servers, one that speculates and one that does not: do 200 seeded sampled answers agree?

    draftline serve --port 8001 --speculation off --dtype float32
    draftline serve --port 8002 --speculation auto --dtype float32
    python -m loadtest.same_seed_demo http://127.0.0.1:8001 http://127.0.0.1:8002

Compares the bytes of every answer, prints the first difference of each that differs, and one JSON line.
Exit code 1 if any differs. Needs only the standard library and works with any server of the OpenAI API.
"""

import argparse
import json
import os
import random
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from loadtest.workloads import words

_SUBJECTS = ("a lighthouse", "the colour blue", "a clock that runs backwards", "rain on a tin roof")


def bodies(count: int, max_tokens: int) -> list[dict[str, object]]:
    """Prompts, seeds and sampling parameters, the same on every run."""
    rng = random.Random(1)
    return [
        {
            "prompt": f"{words(i, rng.randrange(4, 60))}\n\nA few words about {rng.choice(_SUBJECTS)}:",
            "max_tokens": max_tokens,
            "temperature": rng.choice((0.5, 0.7, 1.0, 1.2)),
            "top_p": rng.choice((1.0, 0.95, 0.8)),
            "frequency_penalty": rng.choice((0.0, 0.0, 0.3)),
            "seed": rng.randrange(2**31),
        }
        for i in range(count)
    ]


def answers(url: str, requests: list[dict[str, object]], *, num_streams: int, key: str) -> list[bytes]:
    """Ask one server for everything, several requests at a time."""

    def ask(body: dict[str, object]) -> bytes:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(
            f"{url.rstrip('/')}/v1/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            text: str = json.load(response)["choices"][0]["text"]
            return text.encode()

    with ThreadPoolExecutor(num_streams) as pool:
        return list(pool.map(ask, requests))


def first_difference(one: bytes, other: bytes) -> int:
    """Return the place of the first byte that differs."""
    common = (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(common, min(len(one), len(other)))


def main() -> None:
    """Ask both, compare, say so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs=2, help="of a server, without /v1")
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=4, help="requests at a time")
    options = parser.parse_args()
    requests = bodies(options.answers, options.max_tokens)
    key = os.environ.get("DRAFTLINE_API_KEY", "")
    one, other = (answers(url, requests, num_streams=options.streams, key=key) for url in options.url)
    different = [i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
    for i in different:
        place = first_difference(one[i], other[i])
        print(f"answer {i} (seed {requests[i]['seed']}) differs at byte {place}:", file=sys.stderr)
        for text in (one[i], other[i]):
            print(f"  ...{text[max(0, place - 20) : place + 30]!r}", file=sys.stderr)
    result = {
        "benchmark": "same_seed_demo",
        "answers": len(requests),
        "bytes": sum(map(len, one)),
        "different": len(different),
    }
    print(json.dumps(result))
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
