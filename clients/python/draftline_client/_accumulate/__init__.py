"""A streamed reply put together again: what has come so far, and the whole of it at the end."""

from draftline_client._accumulate.base import Accumulator
from draftline_client._accumulate.chat import ChatAccumulator
from draftline_client._accumulate.completions import CompletionAccumulator
from draftline_client._accumulate.responses import ResponseAccumulator

__all__ = ["Accumulator", "ChatAccumulator", "CompletionAccumulator", "ResponseAccumulator"]
