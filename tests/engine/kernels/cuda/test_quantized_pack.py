"""No bit of a weight is lost: every format against the gguf package, by the twin and by the kernel."""

import numpy as np
import pytest
import torch

from engine.checkpoint.gguf_file import read_gguf
from engine.checkpoint.registry import MODELS, default_cache_dir
from engine.kernels.cuda.dequantize import dequantize, dequantize_rows
from engine.kernels.cuda.quantized_formats import FORMATS, ROW_PADDING
from engine.kernels.cuda.quantized_matrix import QuantizedMatrix, pack
from engine.kernels.cuda.twins import quantized as twin
from tests.engine.kernels.cuda.quantized_cases import EXTREME_SCALES, random_rows, reference


def _dequantized(matrix: QuantizedMatrix, dtype: torch.dtype) -> list[torch.Tensor]:
    shape = (matrix.num_parts * matrix.num_rows, matrix.num_columns)
    by_kernel, by_twin = torch.full(shape, 7.0, dtype=dtype), torch.full(shape, 7.0, dtype=dtype)
    dequantize(matrix, by_kernel)
    twin.dequantize(matrix, by_twin)
    return [by_kernel, by_twin]


@pytest.mark.parametrize("tensor_format", FORMATS)
def test_every_weight_is_the_packages(tensor_format: str) -> None:
    rows = random_rows(tensor_format, 67, 768, EXTREME_SCALES)
    want = reference(tensor_format, rows)
    for got in _dequantized(pack(rows, tensor_format), torch.float32):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("tensor_format", FORMATS)
def test_half_precision_is_rounded_from_float32(tensor_format: str) -> None:
    rows = random_rows(tensor_format, 5, 512, (0.33325, 2.0**-14, 3e-5))
    want = reference(tensor_format, rows).half()
    for got in _dequantized(pack(rows, tensor_format), torch.float16):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("tensor_format", ["Q4_0", "Q5_1", "Q8_0"])
def test_blocks_that_fill_no_step(tensor_format: str) -> None:
    rows = random_rows(tensor_format, 3, 32 * 11, (0.5, 0.33325))
    want = reference(tensor_format, rows)
    for got in _dequantized(pack(rows, tensor_format), torch.float32):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_parts_are_padded_apart() -> None:
    rows = random_rows("Q4_1", 2 * 70, 256, (0.5, 0.33325))
    matrix = pack(rows, "Q4_1", num_parts=2)
    assert matrix.part_tiles * 16 == 2 * ROW_PADDING
    for got in _dequantized(matrix, torch.float32):
        torch.testing.assert_close(got, reference("Q4_1", rows), rtol=0, atol=0)


def test_many_rows_are_packed_a_share_at_a_time() -> None:
    rows = random_rows("Q4_0", 1030, 32, (0.5, 0.33325))
    got = torch.empty(1030, 32)
    twin.dequantize(pack(rows, "Q4_0"), got)
    torch.testing.assert_close(got, reference("Q4_0", rows), rtol=0, atol=0)


@pytest.mark.parametrize("tensor_format", ["Q4_K", "Q6_K", "Q8_0"])
def test_rows_of_tokens(tensor_format: str) -> None:
    rows = random_rows(tensor_format, 70, 512, (0.5, 0.33325))
    ids = torch.tensor([69, 0, 17, 17, *range(20)], dtype=torch.int32)
    matrix, want = pack(rows, tensor_format), reference(tensor_format, rows)[ids.long()]
    for gather in (dequantize_rows, twin.dequantize_rows):
        got = torch.full((len(ids), 512), 7.0)
        gather(matrix, ids, got)
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("tensor_format", FORMATS)
def test_bytes_a_weight(tensor_format: str) -> None:
    layout = FORMATS[tensor_format]
    matrix = pack(random_rows(tensor_format, 64, 1024, (1.0,)), tensor_format)
    assert matrix.num_bytes * 8 == layout.bits_per_weight * 64 * 1024


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="IQ4_NL is not multiplied as stored"):
        pack(np.zeros((2, 18), dtype=np.uint8), "IQ4_NL")
    with pytest.raises(ValueError, match="2 parts of whole Q4_0 blocks"):
        pack(np.zeros((3, 18), dtype=np.uint8), "Q4_0", num_parts=2)


def test_rows_of_the_default_model() -> None:
    path = MODELS[0].path_in(default_cache_dir())
    if not path.exists():
        pytest.skip("the default model has not been fetched")
    file = read_gguf(path)
    packed = 0
    for info in file.tensors:
        if info.format in FORMATS and packed < 8:
            rows = file.rows(info)[:67]
            got = torch.empty(len(rows), info.shape[-1])
            twin.dequantize(pack(rows, info.format), got)
            torch.testing.assert_close(got, reference(info.format, rows), rtol=0, atol=0)
            packed += 1
    assert packed
