"""The reply of /v1/embeddings: vectors cut, normalised, and written as numbers or base64."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from starlette.responses import Response

from server.api.encoding import to_json
from server.api.known_fields import FieldWarning
from server.api.usage import Usage


@dataclass(frozen=True, kw_only=True)
class EmbeddingReply:
    """What the reply says beside its vectors."""

    model: str
    dimensions: int
    is_base64: bool
    usage: Usage
    warnings: tuple[FieldWarning, ...]

    def to_response(self, vectors: Sequence[bytes]) -> Response:
        """Write the reply; each vector is float32 [hidden_size], little-endian."""
        items = [self._item(number, vector) for number, vector in enumerate(vectors)]
        members = to_json(self._members())
        body = b'{"object":"list","data":[' + b",".join(items) + b"]," + members[1:]
        return Response(body, media_type="application/json")

    def _members(self) -> dict[str, object]:
        usage = self.usage
        members: dict[str, object] = {
            "model": self.model,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "total_tokens": usage.prompt_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
        }
        if self.warnings:
            members["warnings"] = [{"param": w.param, "message": w.message} for w in self.warnings]
        return members

    def _item(self, number: int, vector: bytes) -> bytes:
        values = normalized(np.frombuffer(vector, "<f4")[: self.dimensions])
        shown = _as_base64(values) if self.is_base64 else _as_numbers(values)
        return b'{"object":"embedding","index":%d,"embedding":%s}' % (number, shown)


def normalized(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a vector of length 1 in the same direction; a vector of zeros stays as it is."""
    wide = values.astype(np.float64)
    length = float(np.sqrt(np.square(wide).sum()))
    return (wide / length if length else wide).astype("<f4")


def _as_base64(values: npt.NDArray[np.float32]) -> bytes:
    return b'"' + base64.b64encode(values.tobytes()) + b'"'


def _as_numbers(values: npt.NDArray[np.float32]) -> bytes:
    """Write 9 digits, which every float32 keeps, in one call into C: half the size of a double's."""
    return ("[" + ",".join(["%.9g"] * len(values)) % tuple(values.tolist()) + "]").encode()
