"""triton_kernels: a step in Triton's kernels."""

from engine.kernels.cuda.acceptance import accept_drafts
from engine.kernels.cuda.adjustments import adjust
from engine.kernels.cuda.attention import attend
from engine.kernels.cuda.choose import choose
from engine.kernels.cuda.dequantize import dequantize
from engine.kernels.cuda.embedding import embed
from engine.kernels.cuda.kernels import Kernels, copy, take_rows
from engine.kernels.cuda.projection import normalize, project
from engine.kernels.cuda.quantized import project_quantized
from engine.kernels.cuda.step_state import begin_decode, begin_step, end_step
from engine.kernels.cuda.top_logprobs import top_logprobs
from engine.kernels.cuda.write_kv import write_kv


def triton_kernels() -> Kernels:
    """Return all kernels; importing this module needs Triton."""
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
