"""EngineLimits: what a request may ask of an engine, checked where it is made."""

from collections.abc import Collection
from dataclasses import dataclass

from engine.interface.errors import RequestError
from engine.interface.outputs import GenerationRequest
from engine.interface.speculation import SpeculationMode


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Limits of one model as it is served."""

    max_model_len: int  # prompt and answer together, in tokens
    vocab_size: int
    has_draft_model: bool = False

    def check(self, generation: GenerationRequest) -> None:
        """Raise RequestError if the request could never run."""
        num_prompt_tokens, params = len(generation.prompt_token_ids), generation.params
        if num_prompt_tokens == 0:
            raise RequestError("the prompt must hold at least one token", param="prompt")
        if num_prompt_tokens + params.max_tokens > self.max_model_len:
            raise RequestError(
                f"prompt ({num_prompt_tokens} tokens) and max_tokens ({params.max_tokens}) "
                f"exceed the model's limit of {self.max_model_len} tokens",
                param="max_tokens" if num_prompt_tokens < self.max_model_len else "prompt",
            )
        self._check_token_ids("prompt", generation.prompt_token_ids)
        self._check_token_ids("prediction", generation.prediction)
        self._check_token_ids("stop_token_ids", params.stop_token_ids)
        self._check_token_ids("logit_bias", params.logit_bias)
        self._check_token_ids("allowed_token_ids", params.allowed_token_ids or ())
        for sequence in params.banned_sequences:
            self._check_token_ids("bad_words", sequence)
        if generation.speculation.mode is SpeculationMode.DRAFT and not self.has_draft_model:
            raise RequestError(
                "speculation.mode 'draft' needs a draft model, and this server has none (--draft-model)",
                param="speculation.mode",
            )

    def _check_token_ids(self, param: str, token_ids: Collection[int]) -> None:
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.vocab_size:
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < self.vocab_size)
            raise RequestError(
                f"{param}: token id {wrong} is not between 0 and {self.vocab_size - 1}", param=param
            )
