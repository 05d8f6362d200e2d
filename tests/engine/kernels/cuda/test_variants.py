"""G7: every form of every kernel that serving asks for is there before the server is ready.

Kernels are not run here: each launch is noted by what Triton's JIT would compile it for, its constants,
dtypes, and which pointers and integers are divisible by 16 or are 1.
"""

import inspect
import random
from dataclasses import replace

import pytest
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.cuda.triton_kernels import triton_kernels
from tests.cuda_engine import cuda_engine
from tests.drafters import asking
from tests.tiny import LLAMA, generation, random_checkpoint, run_to_end

CONFIG = replace(LLAMA, num_layers=1, hidden_size=64, intermediate_size=96, max_position_embeddings=2048)
_MAX_INT32 = 2**31 - 1


def specialised(name, value, kernel):
    """What the JIT makes of an argument."""
    is_constant = "constexpr" in str(inspect.signature(kernel.fn).parameters[name].annotation)
    if is_constant or value is None:
        return value
    if isinstance(value, Tensor):
        return str(value.dtype), value.data_ptr() % 16 == 0
    if isinstance(value, TensorDescriptor):
        return str(value.base.dtype), tuple(value.block_shape)
    if isinstance(value, int):
        kind = "i32" if abs(value) <= _MAX_INT32 else "i64"
        if name in (kernel.kwargs.get("do_not_specialize") or ()):
            return kind
        return kind, value == 1, value % 16 == 0
    return type(value).__name__


@pytest.fixture
def compiled(monkeypatch):
    """What would have been compiled so far."""
    found = {}

    def run(kernel, *args, grid, warmup, **kwargs):
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        arguments = {name: specialised(name, values[name], kernel) for name in kernel.arg_names}
        options = {name: value for name, value in values.items() if name not in arguments}
        key = (kernel.fn.__qualname__, str(sorted(arguments.items())), str(sorted(options.items())))
        found.setdefault(key, arguments)

    monkeypatch.setattr(InterpretedFunction, "run", run)
    return found


def traffic(count, seed):
    """Prompts of any length, with every kind of parameter that reaches a kernel."""
    rng = random.Random(seed)
    kinds = [
        {},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.0, "typical_p": 0.5, "logprobs": 3},
        {"temperature": 0.9, "repetition_penalty": 1.2},
        {"logit_bias": {3: 1.0}},
        {"allowed_token_ids": frozenset({1, 2, 3})},
    ]
    return [
        generation(
            [rng.randrange(256) for _ in range(rng.choice([1, 2, 5, 16, 17, 63, 64, 65, 200, 600]))],
            max_tokens=rng.choice([1, 2, 9, 40]),
            seed=i,
            **kinds[i % len(kinds)],
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("with_draft", [False, True], ids=["alone", "with-a-draft-model"])
def test_serving_compiles_nothing_that_is_not_known_before(compiled, with_draft):
    draft = random_checkpoint(CONFIG, seed=1) if with_draft else None
    settings = {"max_num_seqs": 40, "max_num_batched_tokens": 256, "kv_cache_memory": 2**25}
    engine = cuda_engine(CONFIG, draft=draft, kernels=triton_kernels, **settings).engine
    known = set(compiled)
    assert len(known) > 20
    requests = traffic(60, seed=1)
    if with_draft:
        requests = [asking(one, "draft", i % 9 or None) for i, one in enumerate(requests)]
    for count in (1, 3, 60):
        for request in requests[:count]:
            engine.add_request(request)
        run_to_end(engine)
    new = [(key[0], compiled[key]) for key in compiled.keys() - known]
    assert new == []
