"""StreamingUser: a Locust user that reads streams, and reports their times as events of their own."""

import itertools
import os
import time

from locust import HttpUser, constant

from loadtest.answer import Answer, read_answer
from loadtest.recording import Recorder

MODEL = os.environ.get("LOADTEST_MODEL", "smollm2-135m-instruct")
API_KEY = os.environ.get("LOADTEST_API_KEY", "")
USER_NUMBERS = itertools.count()
RECORDER = Recorder()  # of the run in this process


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

    def stream(self, name: str, path: str, body: dict[str, object], *, leave_after: int | None = None) -> str:
        """Stream one answer and return its text; failures are Locust's to count.

        With `leave_after` the user closes the connection after so many chunks, as people do.
        """
        self.requests_made += 1
        if leave_after is not None:
            body = {"return_token_ids": True, **body}  # no usage comes that would count them
        body = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, **body}
        with self.client.post(path, json=body, stream=True, catch_response=True, name=name) as response:
            # From when it was sent: what Locust takes to build a request is not the server's time.
            started = time.perf_counter() - response.elapsed.total_seconds()
            if response.status_code != 200:
                self._fail(response, f"{response.status_code}: {response.text[:200]}")
                return ""
            answer = read_answer(response.iter_lines(), leave_after)
            if not answer.is_complete and leave_after is None:
                self._fail(response, "the stream ended without [DONE]")
                return "".join(answer.text)
            if not answer.is_complete:
                response.close()
        self._report(name, started, answer)
        return "".join(answer.text)

    def _fail(self, response: object, message: str) -> None:
        RECORDER.totals.failed += 1
        RECORDER.errors[message] += 1
        response.failure(message)  # type: ignore[attr-defined]

    def _report(self, name: str, started: float, answer: Answer) -> None:
        count(answer, started)
        times = answer.times
        if not times:
            return
        self._fire("TTFT", name, 1e3 * (times[0] - started))
        for earlier, later in itertools.pairwise(times):
            self._fire("ITL", name, 1e3 * (later - earlier))
        if times[-1] > times[0] and answer.is_complete:
            self._fire("RATE", name, (answer.answer_tokens - 1) / (times[-1] - times[0]))

    def _fire(self, kind: str, name: str, value: float) -> None:
        RECORDER.observe(kind, name, value)
        self.environment.events.request.fire(
            request_type=kind, name=name, response_time=value, response_length=0, exception=None, context={}
        )


def count(answer: Answer, started: float) -> None:
    """Add an answer to the totals."""
    totals = RECORDER.totals
    if answer.times:
        totals.num_first_tokens += 1
        totals.ttft_seconds += answer.times[0] - started
    if not answer.is_complete:
        totals.aborted += 1
        totals.aborted_tokens += answer.seen_tokens
        return
    totals.completed += 1
    totals.prompt_tokens += answer.prompt_tokens
    totals.answer_tokens += answer.answer_tokens
    if len(answer.times) > 1:
        totals.decode_seconds += answer.times[-1] - answer.times[0]
        totals.decode_tokens += answer.answer_tokens - 1
