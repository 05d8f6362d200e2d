"""Launch a whole engine through Triton's JIT with no card: launches are specialised and compiled, none runs.

Arguments: compute capability, dtype, and whether matrices are blocks of GGUF (0 or 1). Prints one JSON
object. In a process of its own, in which Triton does not interpret.
"""

import json
import sys
from dataclasses import replace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from engine.kernels.cuda.triton_kernels import triton_kernels
from tests.cuda_engine import cuda_engine
from tests.engine.execution.test_cuda_blocks import CONFIG, in_blocks
from tests.tiny import generation, random_checkpoint, run_to_end


class NoCard:
    """A driver that knows what it would compile for."""

    def __init__(self, capability):
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def main(capability, dtype, has_blocks):
    driver.set_active(NoCard(capability))
    run, compile_form, compiled = JITFunction.run, JITFunction._do_compile, []

    def compile_only(kernel, *args, grid, warmup, **kwargs):
        return run(kernel, *args, grid=grid, warmup=True, **kwargs)

    def noted(kernel, *args, **kwargs):
        compiled.append(kernel.__name__)
        return compile_form(kernel, *args, **kwargs)

    JITFunction.run, JITFunction._do_compile = compile_only, noted
    config = replace(CONFIG, qk_norm=True)
    checkpoint = random_checkpoint(config)
    if has_blocks:
        checkpoint = in_blocks(checkpoint, {"mlp": "Q4_0", "embed_tokens": "Q8_0"})
    loaded = cuda_engine(
        config,
        checkpoint=checkpoint,
        kernels=triton_kernels,
        dtype=getattr(torch, dtype),
        keeps_blocks=bool(has_blocks),
        max_num_seqs=16,
        max_num_batched_tokens=160,
    )
    num_ready = len(compiled)
    for prompt, params in [
        (range(20), {}),
        (range(140), {"temperature": 0.7, "top_p": 0.9, "logprobs": 3}),
        ([3], {"logit_bias": {4: 1.0}}),
    ]:
        loaded.engine.add_request(generation(prompt, max_tokens=4, **params))
    run_to_end(loaded.engine)
    print(json.dumps({"ready": sorted(set(compiled[:num_ready])), "later": compiled[num_ready:]}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
