"""torch_kernels: a step in the twins, on any device."""

from engine.kernels.cuda.kernels import Kernels, copy, take_rows
from engine.kernels.cuda.twins.acceptance import accept_drafts
from engine.kernels.cuda.twins.adjustments import adjust
from engine.kernels.cuda.twins.attention import attend
from engine.kernels.cuda.twins.choose import choose
from engine.kernels.cuda.twins.embedding import embed
from engine.kernels.cuda.twins.projection import normalize, project
from engine.kernels.cuda.twins.quantized import dequantize, project_quantized
from engine.kernels.cuda.twins.step_state import begin_decode, begin_step, end_step
from engine.kernels.cuda.twins.top_logprobs import top_logprobs
from engine.kernels.cuda.twins.write_kv import write_kv


def torch_kernels() -> Kernels:
    """Return the twins of all kernels."""
    return Kernels(
        begin_decode=begin_decode,
        begin_step=begin_step,
        embed=embed,
        project=project,
        project_quantized=project_quantized,
        dequantize=dequantize,
        write_kv=write_kv,
        attend=attend,
        take_rows=take_rows,
        normalize=normalize,
        adjust=adjust,
        choose=choose,
        top_logprobs=top_logprobs,
        accept_drafts=accept_drafts,
        end_step=end_step,
        copy=copy,
    )
