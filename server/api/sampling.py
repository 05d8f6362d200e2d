"""From the fields of a body to SamplingParams."""

from collections.abc import Sequence
from contextlib import suppress
from unicodedata import normalize

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.sampling_params import SamplingParams
from server.api.errors import describe
from server.api.schemas import CompletionRequest, GenerationBody
from server.serving import ServedModel
from server.text import TextError, Tokenizer


def sampling_params(
    body: GenerationBody, model: ServedModel, *, logprobs: int | None, grammar: GrammarSpec | None
) -> SamplingParams:
    """Return what all choices of a request have in common: all but max_tokens, min_tokens and seed.

    Raises RequestError.
    """

    def default(name: str, otherwise: float) -> float:
        given: float | None = getattr(body, name)
        return model.generation_defaults.get(name, otherwise) if given is None else given

    return SamplingParams(
        temperature=default("temperature", 1.0),
        top_k=int(default("top_k", 0)),
        top_p=default("top_p", 1.0),
        min_p=default("min_p", 0.0),
        typical_p=default("typical_p", 1.0),
        repetition_penalty=default("repetition_penalty", 1.0),
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=body.logit_bias,
        allowed_token_ids=body.allowed_token_ids,
        banned_sequences=banned_sequences(body.bad_words, model.tokenizer),
        grammar=grammar,
        stop_token_ids=body.stop_token_ids | _ends_of_middle(body, model),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        processed_logprobs=body.logprobs_mode == "processed",
    )


def _ends_of_middle(body: GenerationBody, model: ServedModel) -> frozenset[int]:
    """Return the tokens with which a code model ends what it fills in."""
    fills_in = isinstance(body, CompletionRequest) and body.suffix and model.fill_in_middle is not None
    return model.fill_in_middle.end_token_ids if fills_in and model.fill_in_middle else frozenset()


def banned_sequences(words: Sequence[str], tokenizer: Tokenizer) -> frozenset[tuple[int, ...]]:
    """Return the tokens of each word as it begins a text and as it follows a space.

    The same letters may be spelt in other tokens too, and those stay allowed. Raises RequestError for a
    word that the vocabulary cannot spell.
    """
    sequences = set()
    for word in words:
        bare = word.lstrip(" ") or word
        sequences.add(_spell(bare, tokenizer))
        with suppress(RequestError):  # a vocabulary of characters may have no space
            sequences.add(_spell(" " + bare, tokenizer))
    return frozenset(sequences)


def _spell(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    try:
        token_ids = tokenizer.encode(text, add_bos=False)
    except TextError as error:
        raise RequestError(f"bad_words: {error}", param="bad_words") from None
    spelt = tokenizer.decode(token_ids, skip_special_tokens=False)
    if normalize("NFC", spelt) != normalize("NFC", text):  # bytes that the vocabulary lacks are dropped
        raise RequestError(f"bad_words: the model has no tokens for {describe(text)}", param="bad_words")
    return tuple(token_ids)
