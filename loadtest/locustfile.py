"""Locust users for any OpenAI-style server: time to first token, gaps between tokens, tokens per second.

    locust -f loadtest/locustfile.py --headless -u 8 -r 4 -t 60s -H http://127.0.0.1:8000 --report report.html
    locust -f loadtest/locustfile.py,loadtest/shapes/ramp.py ...     # more users step by step
    locust -f loadtest/locustfile.py,loadtest/shapes/burst.py ...    # bursts over a steady load

Beside Locust's own table (where a request is a whole answer) three kinds of rows appear: TTFT and ITL in
milliseconds, and RATE in answer tokens per second of one stream. The run fails (exit code 1) when a
request failed or a limit was passed: --max-ttft-p95 and --max-itl-p95 in milliseconds, --min-rate-p50.
Name user classes at the end of the command to run only these; --report writes a page that opens offline.
"""

import json
import time
from pathlib import Path

import gevent
from locust import events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.environment import environment as taken_at
from loadtest.report import html_report
from loadtest.server_metrics import scrape
from loadtest.streaming_user import API_KEY, RECORDER, StreamingUser
from loadtest.workloads import copy_prompt, edit_messages, mixed_lengths, prompt, shared_prefix_prompts, words


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    """Add the limits that make a run fail, and the report."""
    for flag, what in (
        ("--max-ttft-p95", "fail above this many ms"),
        ("--max-itl-p95", "fail above this many ms"),
        ("--min-rate-p50", "fail below so many answer tokens a second in one stream"),
    ):
        parser.add_argument(flag, type=float, default=0.0, help=f"{what}; 0: no limit")
    parser.add_argument(
        "--report", default="", help="write this HTML page, and its figures beside it as .json"
    )


@events.test_start.add_listener
def start_recording(environment: Environment, **_: object) -> None:
    """Sample the server's metrics every second from now on; a server without any is no error."""
    RECORDER.begin(_scrape(environment))
    gevent.spawn(_sample_every_second, environment)


@events.test_stop.add_listener
def write_report(environment: Environment, **_: object) -> None:
    """Write the page and its figures, if asked for."""
    target = environment.parsed_options.report
    if not target:
        return
    gevent.sleep(1.0)  # the server counts the last answers
    _sample(environment)
    result = {"benchmark": "locust", **taken_at(), "problems": problems(environment), **RECORDER.result()}
    result["host"] = environment.host
    Path(target).with_suffix(".json").write_text(json.dumps(result) + "\n")
    Path(target).write_text(html_report(result))


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Set the exit code from failures and limits."""
    found = problems(environment)
    for problem in found:
        print(f"FAILED: {problem}")
    environment.process_exit_code = 1 if found else 0


def problems(environment: Environment) -> list[str]:
    """Return why the run failed, or nothing."""
    options, stats = environment.parsed_options, environment.stats
    found = [f"{stats.total.num_failures} requests failed"] if stats.total.num_failures else []
    for kind, share, limit, sign in (
        ("TTFT", 0.95, options.max_ttft_p95, 1),
        ("ITL", 0.95, options.max_itl_p95, 1),
        ("RATE", 0.5, options.min_rate_p50, -1),
    ):
        for (name, method), entry in stats.entries.items():
            value = entry.get_response_time_percentile(share)
            if method == kind and limit and sign * (value - limit) > 0:
                side = "above" if sign > 0 else "below"
                found.append(f"{kind} p{100 * share:.0f} of {name} is {value:.0f}, {side} {limit:.0f}")
    return found


def _scrape(environment: Environment) -> dict[str, float]:
    try:
        return scrape(environment.host or "", API_KEY)
    except (OSError, ValueError):
        return {}


def _sample_every_second(environment: Environment) -> None:
    while environment.runner is not None and environment.runner.state not in (
        "stopping",
        "stopped",
        "cleanup",
    ):
        gevent.sleep(1.0)
        _sample(environment)


def _sample(environment: Environment) -> None:
    seconds = time.perf_counter() - RECORDER.started
    RECORDER.sample(seconds, environment.runner.user_count, _scrape(environment))


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
        body = {"messages": self.messages, "max_tokens": 48, "seed": self.number}
        answer = self.stream("chat", "/v1/chat/completions", body)
        self.messages.append({"role": "assistant", "content": answer})


class CopyUser(StreamingUser):
    """Copies and edits texts that stand in the prompt: what n-gram speculation is for."""

    weight = 1

    @task(2)
    def copy(self) -> None:
        """Go on with a paragraph that stood before."""
        text = copy_prompt((self.number, self.requests_made), 100)
        self.stream("copy", "/v1/completions", {"prompt": text, "max_tokens": 64, "temperature": 0})

    @task(1)
    def edit(self) -> None:
        """Repeat a text with one word replaced."""
        body = {"messages": edit_messages((self.number, self.requests_made), 80), "max_tokens": 96}
        self.stream("edit", "/v1/chat/completions", body | {"temperature": 0})


class TraceUser(StreamingUser):
    """Lengths of prompts and answers as in a trace of chat traffic: many short ones, a few long ones."""

    weight = 2

    @task
    def complete(self) -> None:
        """The next pair of lengths."""
        seed = (self.number, self.requests_made)
        [(prompt_tokens, answer_tokens)] = mixed_lengths(seed, 1)
        body = {"prompt": prompt(seed, prompt_tokens), "max_tokens": answer_tokens, "ignore_eos": True}
        self.stream("trace", "/v1/completions", body)


class ImpatientUser(StreamingUser):
    """Leaves before the answer is complete; the server must notice and free its place."""

    weight = 1

    @task
    def leave(self) -> None:
        """Read a few chunks of a long answer, then close the connection."""
        text = prompt((self.number, self.requests_made), 64)
        body = {"prompt": text, "max_tokens": 256, "ignore_eos": True}
        self.stream("left early", "/v1/completions", body, leave_after=3 + self.requests_made % 8)
