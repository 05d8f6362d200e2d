"""How far the prefix cache had a prompt, as replies say it."""

from engine.interface.cache_explanation import CacheExplanation
from server.api.logprobs import token_text
from server.text import Tokenizer


def explanation_to_json(explanation: CacheExplanation, tokenizer: Tokenizer) -> dict[str, object]:
    """Return what `usage.draftline.cache` and a lookup say of one prompt."""
    end: dict[str, object] = {"reason": explanation.end.value, "position": explanation.num_cached_tokens}
    for name, token_id in (("cached", explanation.cached_token_id), ("prompt", explanation.prompt_token_id)):
        if token_id is not None:
            end[name] = {"token_id": token_id, "text": token_text(tokenizer, token_id)}
    return {
        "prompt_tokens": explanation.num_prompt_tokens,
        "cached_tokens": explanation.num_cached_tokens,
        "block_size": explanation.block_size,
        "end": end,
    }
