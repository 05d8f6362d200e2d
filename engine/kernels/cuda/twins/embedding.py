"""The embeddings of a step's tokens, in plain torch."""

from torch import Tensor


def embed(
    token_ids: Tensor,
    positions: Tensor,
    embedding: Tensor,
    position_embedding: Tensor | None,
    out: Tensor,
    num_tokens: int,
    *,
    dependent: bool = False,  # noqa: ARG001 - only a launch can depend on another
) -> None:
    """Write the embedding of each token, plus that of its position where the model has one."""
    embedded = embedding[token_ids[:num_tokens].long()]
    if position_embedding is not None:
        shift = position_embedding[positions[:num_tokens].long()]
        embedded = (embedded.float() + shift.float()).to(out.dtype)
    out[:num_tokens] = embedded
