"""Small models and scripted runners for tests: no file, no download, milliseconds a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint.checkpoint import Checkpoint, TokenizerData
from engine.checkpoint.model_config import Activation, ModelConfig, Norm, RopeConfig
from engine.core.continuation import expand
from engine.core.engine import Engine, GrammarSource
from engine.core.executor import FinishedStep
from engine.core.request import Request
from engine.interface.batch import PENDING_TOKEN, Batch, Continuation, SamplerOutput, ScheduledChunk
from engine.interface.config import EngineConfig
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.interface.speculation import SpeculationParams
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.loading.loader import LoadedEngine, build_engine
from engine.speculative.speculator import Speculator

LLAMA = ModelConfig(
    architecture="llama",
    vocab_size=256,
    hidden_size=96,
    intermediate_size=160,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    norm_eps=1e-5,
    activation=Activation.SILU,
    rope=RopeConfig(),
    tie_word_embeddings=True,
)
GPT2 = replace(
    LLAMA,
    architecture="gpt2",
    norm=Norm.LAYER,
    is_gated=False,
    has_qkv_proj=True,
    num_kv_heads=6,
    rope=None,
    activation=Activation.GELU_TANH,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
)


@dataclass(frozen=True)
class InMemoryTensor:
    """A StoredTensor that is already here."""

    tensor: Tensor
    format: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def dequantize(self) -> Tensor:
        return self.tensor.clone()


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this configuration takes."""
    h, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    gpt2 = config.architecture == "gpt2"
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, h), "norm.weight": (h,)}
    if gpt2:
        shapes |= {"embed_positions.weight": (config.max_position_embeddings, h), "norm.bias": (h,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, h)
    attn = {"qkv_proj": (3 * h, h)} if gpt2 else {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h)}
    mlp = {"up_proj": (inner, h), "down_proj": (h, inner)} | ({} if gpt2 else {"gate_proj": (inner, h)})
    for i in range(config.num_layers):
        for norm in ("attn_norm", "mlp_norm"):
            shapes[f"layers.{i}.{norm}.weight"] = (h,)
            if gpt2:
                shapes[f"layers.{i}.{norm}.bias"] = (h,)
        if config.qk_norm:
            shapes |= {f"layers.{i}.attn.{n}_norm.weight": (config.head_dim,) for n in "qk"}
        linears = [("attn", n, s, config.qkv_bias) for n, s in attn.items()]
        linears += [("attn", "o_proj", (h, q), config.o_bias)]
        linears += [("mlp", n, s, config.mlp_bias) for n, s in mlp.items()]
        for block, name, shape, bias in linears:
            shapes[f"layers.{i}.{block}.{name}.weight"] = shape
            if bias:
                shapes[f"layers.{i}.{block}.{name}.bias"] = shape[:1]
    return shapes


def random_checkpoint(config: ModelConfig = LLAMA, *, seed: int = 0) -> Checkpoint:
    """A checkpoint of random weights whose greedy answers vary from position to position."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        scale = 1.0 if name.startswith("embed") else shape[-1] ** -0.5 * 2.0
        tensors[name] = InMemoryTensor(noise * 0.1 + 1.0 if "norm.weight" in name else noise * scale)
    return Checkpoint(
        name="tiny",
        path=Path("tiny"),
        config=config,
        tensors=tensors,
        tokenizer=TokenizerData(
            tokens=tuple(f"t{i}" for i in range(config.vocab_size)),
            merges=(),
            special_token_ids=frozenset(),
        ),
        fingerprint=bytes(16),
    )


def tiny_engine(config: ModelConfig = LLAMA, *, seed: int = 0, **engine_config: object) -> LoadedEngine:
    """A real engine over a random model; float32 and a small pool unless told otherwise."""
    settings = {"device": "cpu", "dtype": "float32", "kv_cache_memory": 2**24} | engine_config
    return build_engine(random_checkpoint(config, seed=seed), EngineConfig(**settings))


class ScriptedExecutor:
    """An executor without a model: the next token is a function of the tokens before it.

    It knows those as a model does, from its storage: tokens lie in the slots of their positions, so a wrong
    block table, copy or cache hit gives a wrong answer. With steps ahead a step runs when it is launched,
    and its tokens are told later.
    """

    max_draft_positions = 0

    def __init__(
        self,
        next_token: Callable[[Sequence[int]], int],
        *,
        block_size: int,
        steps_ahead: int = 0,
        continues: bool = True,
    ) -> None:
        self.next_token = next_token
        self.block_size = block_size
        self.steps_ahead = steps_ahead
        self.continues = continues
        self.launched = Batch(())  # the latest, in full
        self.num_continuations = 0
        self.batches: list[list[tuple[int, int]]] = []  # (request_id, num_tokens) of each step
        self._storage: dict[tuple[int, int], int] = {}  # (block id, offset) -> token
        self._latest: dict[int, int] = {}

    def launch(self, batch: Batch | Continuation) -> FinishedStep:
        if isinstance(batch, Continuation):
            self.num_continuations += 1
            batch = expand(self.launched, batch)
        self.launched = batch
        self.batches.append([(chunk.request_id, chunk.num_tokens) for chunk in batch.chunks])
        for copy in batch.block_copies:
            for offset in range(self.block_size):
                self._storage[copy.target, offset] = self._storage.get((copy.source, offset), -1)
        tokens = [token for chunk in batch.chunks for token in self._run(chunk)]
        return FinishedStep(SamplerOutput(tuple(tokens), (None,) * len(tokens)))

    def read_block(self, block_id: int) -> bytes:
        return bytes(self._storage.get((block_id, offset), 255) for offset in range(self.block_size))

    def write_block(self, block_id: int, content: bytes) -> None:
        for offset, token in enumerate(content):
            self._storage[block_id, offset] = token

    def _run(self, chunk: ScheduledChunk) -> list[int]:
        token_ids, end = list(chunk.token_ids), chunk.first_position + chunk.num_tokens
        if token_ids[-1] == PENDING_TOKEN:
            token_ids[-1] = self._latest[chunk.request_id]
        slots = [
            (chunk.block_ids[position // self.block_size], position % self.block_size)
            for position in range(end)
        ]
        self._storage.update(zip(slots[chunk.first_position :], token_ids, strict=True))
        known = [self._storage[slot] for slot in slots]
        tokens = [self.next_token(known[: row.position]) for row in chunk.rows]
        if tokens:
            self._latest[chunk.request_id] = tokens[0]
        return tokens


def scripted_engine(
    next_token: Callable[[Sequence[int]], int] = lambda tokens: (tokens[-1] + 1) % 100,
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    max_model_len: int = 128,
    enable_prefix_caching: bool = True,
    eos_token_ids: frozenset[int] = frozenset(),
    grammar_source: GrammarSource | None = None,
    speculator: Speculator | None = None,
    steps_ahead: int = 0,
    continues: bool = True,
) -> Engine:
    """An engine whose bookkeeping is real and whose model is a script."""
    manager = KVCacheManager(
        BlockPool(num_blocks), block_size=block_size, enable_prefix_caching=enable_prefix_caching
    )
    return Engine(
        ScriptedExecutor(next_token, block_size=block_size, steps_ahead=steps_ahead, continues=continues),
        manager,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        vocab_size=100,
        eos_token_ids=eos_token_ids,
        grammar_source=grammar_source,
        speculator=speculator,
    )


def generation(
    prompt: Sequence[int],
    *,
    choice: int = 0,
    salt: bytes = b"",
    speculation: SpeculationParams | None = None,
    **params: object,
) -> GenerationRequest:
    """A request; greedy unless told otherwise."""
    settings = {"temperature": 0.0, "max_tokens": 8} | params
    return GenerationRequest(
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(**settings),
        choice=choice,
        cache_salt=salt,
        speculation=speculation or SpeculationParams(),
    )


def run_to_end(engine: Engine) -> None:
    """Step until nothing is left."""
    while engine.has_work:
        engine.step()


def generate(engine: Engine, *requests: GenerationRequest) -> list[list[int]]:
    """Answers of requests that run together."""
    added: list[Request] = [engine.add_request(request) for request in requests]
    run_to_end(engine)
    engine.check_invariants()
    return [request.token_ids[request.num_prompt_tokens :] for request in added]
