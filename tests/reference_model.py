"""What `transformers` says of a prompt: the slow twin of scoring."""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM


def reference_logprobs(model: LlamaForCausalLM, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the logprob of each token but the first of prompts of one length, by one plain pass."""
    ids = torch.tensor([list(prompt) for prompt in prompts])
    with torch.inference_mode():
        logprobs = model(ids, use_cache=False).logits[:, :-1].double().log_softmax(dim=-1)
    return logprobs.gather(2, ids[:, 1:].unsqueeze(2))[:, :, 0].tolist()
