"""Compile a model's projections ahead of time, in a process where Triton does not interpret.

Arguments: compute capability, dtype, model, number of rows, and whether launches are dependent (0 or 1).
"""

import json
import sys

import torch

from engine.checkpoint.model_config import Activation, ModelConfig, Norm
from engine.kernels.cuda.model_projections import model_projections
from engine.kernels.cuda.projection import variants
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from engine.kernels.cuda.variants import compile_variant


def config(hidden, inner, heads, kv_heads, head_dim, vocab, *, norm=Norm.RMS):
    is_llama = norm is Norm.RMS
    return ModelConfig(
        architecture="test",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=1024,
        norm_eps=1e-5,
        activation=Activation.SILU if is_llama else Activation.GELU,
        rope=None,
        tie_word_embeddings=True,
        qkv_bias=not is_llama,
        o_bias=not is_llama,
        mlp_bias=not is_llama,
        norm=norm,
        is_gated=is_llama,
    )


MODELS = {
    "135m": config(576, 1536, 9, 3, 64, 49152),
    "8b": config(4096, 14336, 32, 8, 128, 128256),
    "gpt2": config(768, 3072, 12, 12, 64, 50257, norm=Norm.LAYER),
    "odd": config(100, 300, 4, 4, 25, 1001),
}


def main(capability, dtype, model, max_rows, dependent):
    uses = model_projections(MODELS[model], getattr(torch, dtype))
    workspace = ProjectionWorkspace(
        max_rows, [use.projection for use in uses], torch.device("meta"), has_descriptors=capability >= 90
    )
    for variant in variants(uses, workspace, dependent=bool(dependent)):
        report = compile_variant(variant, capability)
        constants = {name: value for name, value in variant.constants.items() if value is not None}
        print(json.dumps({"kernel": variant.kernel.__name__, **constants, **report._asdict()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
