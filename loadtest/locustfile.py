"""Locust users for any OpenAI-style server: time to first token, gaps between tokens, tokens per second.

    locust -f loadtest/locustfile.py --headless -u 8 -r 4 -t 60s -H http://127.0.0.1:8000

Beside Locust's own table (where a request is a whole answer) three kinds of rows appear: TTFT and ITL in
milliseconds, and RATE in answer tokens per second of one stream. The run fails (exit code 1) when a
request failed or a percentile is above its limit: --max-ttft-p95 and --max-itl-p95, in milliseconds.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator

from locust import HttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.workloads import prompt, shared_prefix_prompts, words

MODEL = os.environ.get("LOADTEST_MODEL", "smollm2-135m-instruct")
API_KEY = os.environ.get("LOADTEST_API_KEY", "")
USER_NUMBERS = itertools.count()


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    """Add the limits that make a run fail."""
    parser.add_argument(
        "--max-ttft-p95", type=float, default=0.0, help="fail above this many ms; 0: no limit"
    )
    parser.add_argument("--max-itl-p95", type=float, default=0.0, help="fail above this many ms; 0: no limit")


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Set the exit code from failures and limits."""
    options, stats = environment.parsed_options, environment.stats
    problems = [f"{stats.total.num_failures} requests failed"] if stats.total.num_failures else []
    for kind, limit in (("TTFT", options.max_ttft_p95), ("ITL", options.max_itl_p95)):
        for (name, method), entry in stats.entries.items():
            p95 = entry.get_response_time_percentile(0.95)
            if method == kind and limit and p95 > limit:
                problems.append(f"{kind} p95 of {name} is {p95:.0f} ms, above {limit:.0f} ms")
    for problem in problems:
        print(f"FAILED: {problem}")
    environment.process_exit_code = 1 if problems else 0


class StreamingUser(HttpUser):
    """Posts a streamed request and reports its times."""

    abstract = True
    wait_time = constant(0)

    def on_start(self) -> None:
        """Give the user a number and its key."""
        self.number = next(USER_NUMBERS)
        self.requests_made = 0
        if API_KEY:
            self.client.headers["Authorization"] = f"Bearer {API_KEY}"

    def stream(self, name: str, path: str, body: dict[str, object]) -> str:
        """Stream one answer and return its text; failures are Locust's to count."""
        self.requests_made += 1
        body = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, **body}
        started = time.perf_counter()
        with self.client.post(path, json=body, stream=True, catch_response=True, name=name) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return ""
            text, times, num_tokens, is_complete = _read(response.iter_lines())
            if not is_complete:
                response.failure("the stream ended without [DONE]")
                return text
        self._report(name, started, times, num_tokens)
        return text

    def _report(self, name: str, started: float, times: list[float], num_tokens: int) -> None:
        if not times:
            return
        self._fire("TTFT", name, 1e3 * (times[0] - started))
        for earlier, later in itertools.pairwise(times):
            self._fire("ITL", name, 1e3 * (later - earlier))
        if times[-1] > times[0]:
            self._fire("RATE", name, (num_tokens - 1) / (times[-1] - times[0]))

    def _fire(self, kind: str, name: str, value: float) -> None:
        self.environment.events.request.fire(
            request_type=kind, name=name, response_time=value, response_length=0, exception=None, context={}
        )


class CompletionUser(StreamingUser):
    """Unrelated prompts of mixed lengths."""

    weight = 2

    @task
    def complete(self) -> None:
        """A new prompt of 16 to 256 tokens."""
        length = (16, 64, 128, 256)[self.requests_made % 4]
        text = prompt((self.number, self.requests_made), length)
        self.stream("completion", "/v1/completions", {"prompt": text, "max_tokens": 64})


class SharedPrefixUser(StreamingUser):
    """Everybody shares a long system prompt: what a prefix cache is for."""

    weight = 1

    @task
    def complete(self) -> None:
        """The shared 500 tokens and a question of its own."""
        text = shared_prefix_prompts("system", 500, 1)[0] + words((self.number, self.requests_made), 8)
        self.stream("shared prefix", "/v1/completions", {"prompt": text, "max_tokens": 32})


class ChatUser(StreamingUser):
    """A conversation whose history grows, turn by turn."""

    weight = 1

    def on_start(self) -> None:
        """Begin with an empty history."""
        super().on_start()
        self.messages: list[dict[str, str]] = []

    @task
    def chat(self) -> None:
        """One more turn; after six a new conversation."""
        if len(self.messages) >= 12:
            self.messages = []
        self.messages.append({"role": "user", "content": words((self.number, self.requests_made), 20)})
        answer = self.stream(
            "chat", "/v1/chat/completions", {"messages": self.messages, "max_tokens": 48, "seed": self.number}
        )
        self.messages.append({"role": "assistant", "content": answer})


def _read(lines: Iterator[bytes]) -> tuple[str, list[float], int, bool]:
    text, times, num_tokens = [], [], 0
    for line in lines:
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]":
            return "".join(text), times, num_tokens, True
        chunk = json.loads(line[6:])
        if chunk.get("usage"):
            num_tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            piece = choice.get("text") or choice.get("delta", {}).get("content")
            if piece:
                text.append(piece)
                times.append(time.perf_counter())
    return "".join(text), times, num_tokens, False
