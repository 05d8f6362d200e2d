"""`transformers` generate on the same dequantised weights, as a process that answers one line per command.

Commands on standard input, one a line: `SEED NUM_PROMPT_TOKENS NUM_TOKENS`. Answers are JSON lines with
the time to the first token and the decode rate. Between commands the process sleeps, so that another
server can be measured in the same run.
"""

import json
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from engine.checkpoint import load_checkpoint
from engine.checkpoint.checkpoint import Checkpoint

NAMES = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attn.": "self_attn.",
}


class Clock(BaseStreamer):
    """Notes when each token comes; the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take in the prompt, then a token a call."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to flush."""


def build_model(checkpoint: Checkpoint, dtype: torch.dtype) -> LlamaForCausalLM:
    """The same weights as a `transformers` model."""
    config = checkpoint.config
    assert config.rope is not None
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=True,
        )
    ).eval()
    state = {}
    for name, tensor in checkpoint.tensors.items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        state[f"model.{name}"] = tensor.dequantize()
    model.load_state_dict(state, strict=False)
    return model.to(dtype)


def main() -> None:
    """Answer commands until standard input ends."""
    model = build_model(load_checkpoint(sys.argv[1]), getattr(torch, sys.argv[2]))
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
