"""EngineHost: where an engine runs, as AsyncEngine needs it; a thread of this process, or a process."""

from collections.abc import Sequence
from typing import Protocol

from engine.bridge.messages import FromEngine, ToEngine
from engine.bridge.outbox import Outbox
from engine.interface.cancellation import Cancellation
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.info import EngineInfo
from engine.interface.limits import EngineLimits
from engine.interface.outputs import GenerationRequest
from engine.interface.stats import EngineStats


class EngineHost(Protocol):
    """Takes messages and puts what comes of them into outboxes; safe to call from any thread."""

    info: EngineInfo | None
    limits: EngineLimits
    max_num_seqs: int
    stream_interval: float  # seconds that an outbox is to keep what is not urgent; 0: that is done already

    @property
    def death(self) -> str | None:
        """Why the engine died for good; None while it lives or is being restarted."""

    @property
    def is_restarting(self) -> bool:
        """True after a failure, until the engine takes work again."""

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot."""

    def connect(self, outbox: Outbox[FromEngine]) -> int:
        """Add an outbox and return its number."""

    def check(self, generations: Sequence[GenerationRequest]) -> None:
        """Raise StepError for a request that was running whenever the engine failed."""

    def send(self, message: ToEngine) -> None:
        """Take a message; messages are kept in order."""

    def compile_grammar(self, spec: GrammarSpec, cancellation: Cancellation | None = None) -> None:
        """Compile a grammar so that requests find it; blocks.

        Raises RequestError, CancelledError, EngineUnavailableError.
        """

    def close(self, timeout: float | None = None) -> bool:
        """End the engine after its present step; False if that takes longer than `timeout` seconds."""
