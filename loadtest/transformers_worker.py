"""`transformers` generate on the same dequantised weights, as a process that answers one line per command.

Commands on standard input, one a line: `SEED NUM_PROMPT_TOKENS NUM_TOKENS`. Answers are JSON lines with
the time to the first token and the decode rate. Between commands the process sleeps, so that another
server can be measured in the same run.
"""

import json
import sys
import time

import torch
from transformers.generation.streamers import BaseStreamer

from engine.checkpoint import load_checkpoint
from loadtest.transformers_model import build_reference


class Clock(BaseStreamer):
    """Notes when each token comes; the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take in the prompt, then a token a call."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to flush."""


def main() -> None:
    """Answer commands until standard input ends."""
    model = build_reference(load_checkpoint(sys.argv[1])).to(getattr(torch, sys.argv[2]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seed, num_prompt_tokens, num_tokens = (int(word) for word in line.split())
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(100, 40_000, (1, num_prompt_tokens), generator=generator)
        clock = Clock()
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=clock,
            )
        tokens = clock.times[1:]
        rate = (len(tokens) - 1) / (tokens[-1] - tokens[0])
        print(json.dumps({"ttft": tokens[0] - started, "decode_rate": rate}), flush=True)


if __name__ == "__main__":
    main()
