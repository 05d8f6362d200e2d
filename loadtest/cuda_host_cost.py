"""What a step costs on the host with the CUDA executor, whose device answers at once.

    python -m loadtest.cuda_host_cost [--rounds 7]

Microseconds of a decode step: scheduling, packing, the table of requests, inbox and results, for greedy
requests that decode together. Copies, graphs and kernels do nothing, so that the driver's own calls, a copy
each way, two graphs and an event, are not in it. Medians over rounds, the batches interleaved; then one JSON
line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from engine.checkpoint.model_config import Activation, ModelConfig, RopeConfig
from engine.core.engine import Engine
from engine.execution.cuda.device import Numbers
from engine.execution.cuda.executor import CudaExecutor
from engine.execution.cuda.runner import CudaRunner, RunnerSize
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.kernels.cuda.cuda_decoder import CudaDecoder
from engine.kernels.cuda.kernels import Kernels
from engine.kernels.cuda.paged_kv_storage import PagedKVStorage
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.model.weights import Weights
from engine.sampling.sampler import Sampler
from loadtest.environment import environment

BATCHES = (1, 16, 64, 256)
_BLOCK_SIZE, _STEPS_AHEAD, _VOCAB_SIZE = 16, 1, 64
_CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=_VOCAB_SIZE,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=16,
    max_position_embeddings=4096,
    norm_eps=1e-5,
    activation=Activation.SILU,
    rope=RopeConfig(),
    tie_word_embeddings=True,
)


class InstantEvent:
    """Is over."""

    def synchronize(self) -> None:
        """Return."""


class InstantDevice:
    """Does nothing, in no time: every token is 0."""

    device = torch.device("cpu")

    def host_buffer(self, size: int) -> Tensor:
        """Return zeros."""
        return torch.zeros(size, dtype=torch.int32)

    def send(self, source: Tensor, target: Tensor) -> None:
        """Copy nothing."""

    def upload(self, numbers: Numbers) -> Tensor:
        """Return the numbers themselves."""
        return torch.from_numpy(numbers)

    def receive(self, source: Tensor, target: Tensor) -> None:
        """Copy nothing."""

    def record(self) -> InstantEvent:
        """Return an event that is over."""
        return InstantEvent()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what launches nothing."""
        return _nothing


def _nothing(*args: object, **kwargs: object) -> None:
    pass


class RandomTensor:
    """A weight of any values."""

    format = "F32"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def dequantize(self) -> Tensor:
        """Return zeros."""
        return torch.zeros(self.shape)


def new_decoder(kernels: Kernels) -> CudaDecoder:
    """Return a model of one small layer."""
    size = _CONFIG.hidden_size
    shapes = {"embed_tokens.weight": (_VOCAB_SIZE, size), "norm.weight": (size,)}
    names = [f"attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    shapes |= {f"layers.0.{name}.weight": (size, size) for name in names}
    shapes |= {f"layers.0.{name}.weight": (size,) for name in ("attn_norm", "mlp_norm")}
    tensors = {name: RandomTensor(shape) for name, shape in shapes.items()}
    weights = Weights(tensors, dtype=torch.float32, device=torch.device("cpu"))
    return CudaDecoder(_CONFIG, weights, max_positions=4096, kernels=kernels)


def build_engine(num_requests: int, num_steps: int) -> Engine:
    """Return an engine with room for all of the requests."""
    max_blocks = -(-(num_steps + 64) // _BLOCK_SIZE)
    num_blocks, device = num_requests * max_blocks, InstantDevice()
    kernels = Kernels(*[_nothing] * len(Kernels._fields))
    kv_storage = PagedKVStorage(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=_BLOCK_SIZE,
        num_kv_heads=1,
        head_dim=16,
        dtype=torch.float32,
        device=device.device,
    )
    size = RunnerSize(
        max_requests=2 * num_requests,
        max_blocks=max_blocks,
        max_tokens=64 * num_requests,
        max_step_requests=num_requests,
        max_rows=num_requests,
        num_inboxes=_STEPS_AHEAD + 1,
        max_graphs=8,
    )
    runner = CudaRunner(new_decoder(kernels), kv_storage, kernels, device, size=size, vocab_size=_VOCAB_SIZE)
    executor = CudaExecutor(runner, Sampler(vocab_size=_VOCAB_SIZE), steps_ahead=_STEPS_AHEAD)
    executor.prepare()
    return Engine(
        executor,
        KVCacheManager(BlockPool(num_blocks), block_size=_BLOCK_SIZE, enable_prefix_caching=True),
        max_model_len=num_steps + 64,
        max_num_seqs=num_requests,
        max_num_batched_tokens=64 * num_requests,
        vocab_size=_VOCAB_SIZE,
        eos_token_ids=frozenset({2}),
    )


def decode_step(num_requests: int, num_steps: int) -> float:
    """Return the seconds of a decode step, on average over so many."""
    engine = build_engine(num_requests, num_steps + 8)
    params = SamplingParams(temperature=0.0, max_tokens=num_steps + 8)
    for i in range(num_requests):
        engine.add_request(GenerationRequest(prompt_token_ids=(i % 60, i // 60, *range(30)), params=params))
    while engine.scheduler.waiting:
        engine.step()
    started = time.perf_counter()
    for _ in range(num_steps):
        engine.step()
    return (time.perf_counter() - started) / num_steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    seconds: dict[int, list[float]] = {count: [] for count in BATCHES}
    for _ in range(arguments.rounds):
        for count in BATCHES:
            seconds[count].append(decode_step(count, max(320, 1600 // count)))
    medians = {count: 1e6 * statistics.median(times) for count, times in seconds.items()}
    print("requests   us a step (a request)")
    for count, median in medians.items():
        print(f"{count:8} {median:11.1f} ({median / count:5.1f})")
    rounded = {f"cuda_{count}_us": round(median, 1) for count, median in medians.items()}
    print(json.dumps({"benchmark": "cuda_host_cost"} | environment() | rounded))


if __name__ == "__main__":
    main()
