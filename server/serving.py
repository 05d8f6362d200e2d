"""What the endpoints share: the served model, and whether the server takes work."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from engine.interface.attention import AttentionModel
from engine.interface.engine_client import EngineClient
from engine.interface.pooling import Pooling
from server.admission import Admission, BodyBudget
from server.answers import FORMATS, ToolFormat
from server.api.errors import ENGINE_IS_DEAD, ApiError, unavailable
from server.api.grammars import GrammarCompilerPool
from server.api.limits import MAX_CHOICES
from server.api.responses.store import ResponseStore
from server.fair_turns import FairTurns
from server.metrics import ServerMetrics
from server.open_requests import OpenRequests
from server.text import ChatTemplate, ContentGuard, FillInMiddle, Tokenizer

STALL_SECONDS = 60.0
"""A step that runs longer than this is stuck: the slowest prefill chunk on a CPU takes a few seconds."""


_MAX_ATTENTION_WAITING, _MAX_ATTENTION_WAITING_EACH = 8, 4  # each takes about half a second
_BODIES_HELD = 16  # of the largest size, at once
_ENDLESS = 1 << 62


class Phase(str, Enum):
    """What /ready says; only `ready` is 200."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STALLED = "stalled"
    RESTARTING = "restarting"
    DEAD = "dead"


@dataclass(frozen=True, kw_only=True)
class EmbeddingModel:
    """How the model makes embeddings."""

    pooling: Pooling
    hidden_size: int  # values of an embedding
    suffix_token_id: int | None = None  # behind every text
    is_matryoshka: bool = False  # the first values of an embedding are a smaller one


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A loaded model with all that the endpoints need to serve it."""

    name: str
    engine: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    max_token_bytes: int  # bytes of the longest token: a longer text has more tokens than this says
    description: str = ""  # architecture and size, for people
    content_guard: ContentGuard | None = None  # None: special tokens in messages are what they spell
    developer_role: str = "system"  # what the template is given for the role developer
    tool_format: ToolFormat = FORMATS["hermes"]  # how the model writes calls of tools
    has_reasoning: bool = False  # it may think, between tags, before it answers
    fill_in_middle: FillInMiddle | None = None  # of a code model, which writes between two texts
    embedding: EmbeddingModel | None = None
    attention: AttentionModel | None = None  # None: the server was not asked to show any
    why_no_embeddings: str = "this model makes none"
    generation_defaults: Mapping[str, float] = field(default_factory=dict)
    system_fingerprint: str = "fp_0"
    created: int = field(default_factory=lambda: int(time.time()))

    def work_size(self, size: int) -> int:
        """Return `size` of a text, or more than anything is worked on inline if its length says nothing."""
        return size if self.tokenizer.is_linear else _ENDLESS


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Bounds on one request that the operator can set."""

    max_body_size: int = 4 * 2**20  # bytes
    max_choices: int = MAX_CHOICES  # number of prompts times n


class ServerState:
    """The mutable part of the server: its model once loaded, and whether it drains."""

    def __init__(
        self,
        *,
        admission: Admission,
        metrics: ServerMetrics,
        limits: RequestLimits,
        responses: ResponseStore | None = None,
    ) -> None:
        self.admission = admission
        self.bodies = BodyBudget(_BODIES_HELD * limits.max_body_size)
        self.metrics = metrics
        self.limits = limits
        self.responses = responses or ResponseStore()
        self.open_requests = OpenRequests()
        self.grammars = GrammarCompilerPool()
        self.attention_turns = FairTurns(
            1,
            work="prompts whose attention is asked for",
            max_waiting=_MAX_ATTENTION_WAITING,
            max_waiting_each=_MAX_ATTENTION_WAITING_EACH,
        )
        self.model: ServedModel | None = None
        self._is_draining = False

    def publish(self, model: ServedModel) -> None:
        """Begin to serve `model`."""
        self.model = model
        self.metrics.publish(model.name, model.engine.stats, model.engine.info)

    def start_draining(self) -> None:
        """Refuse new work from now on."""
        self._is_draining = True

    @property
    def phase(self) -> Phase:
        """What the server is doing."""
        if self.model is not None and self.model.engine.is_dead:
            return Phase.DEAD
        if self._is_draining:
            return Phase.DRAINING
        if self.model is None:
            return Phase.LOADING
        if self.model.engine.is_restarting:
            return Phase.RESTARTING
        if self.model.engine.stats().seconds_since_step > STALL_SECONDS:
            return Phase.STALLED
        return Phase.READY

    @property
    def is_idle(self) -> bool:
        """True while no request is open and no large body is being read."""
        if self.model is None or self.bodies.num_bytes:
            return False
        stats = self.model.engine.stats()
        return stats.num_requests_running + stats.num_requests_waiting == 0

    def loaded_model(self) -> ServedModel:
        """Return the model; raises ApiError 503 while it loads."""
        if self.model is None:
            raise not_ready(Phase.LOADING)
        return self.model

    def generating_model(self) -> ServedModel:
        """Return the model for new work; raises ApiError 503 while loading or draining.

        A dead engine refuses by itself; a stalled one may yet go on.
        """
        if self._is_draining:
            raise not_ready(Phase.DRAINING)
        return self.loaded_model()


def not_ready(phase: Phase) -> ApiError:
    """Return the 503 of a phase."""
    return unavailable(_WHY_NOT_READY[phase], code=phase.value)


_WHY_NOT_READY = {
    Phase.LOADING: "the model is still loading",
    Phase.DRAINING: "the server is shutting down",
    Phase.STALLED: "a step of the engine does not end",
    Phase.RESTARTING: "the engine failed and is being restarted",
    Phase.DEAD: ENGINE_IS_DEAD,
}
