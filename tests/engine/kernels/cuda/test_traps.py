"""G1 to G9: what other engines' CUDA paths broke on, and which test on a CPU would see it here.

What needs a card is a check of the same name in tests/gpu/traps.py and tests/gpu/compile.py.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[4]
GPU_PARTS = tuple((ROOT / "tests/gpu").glob("*.py"))


class Trap(NamedTuple):
    """A trap, and the tests that cover it, as file::function."""

    what: str
    tests: tuple[str, ...]


KERNELS = "tests/engine/kernels/cuda"
EXECUTOR = "tests/engine/execution/test_cuda_executor.py"
TRAPS = {
    "G1": Trap(
        "block or row number times stride passes 2^31",
        (f"{KERNELS}/test_attention.py::test_blocks_beyond_two_to_the_31_numbers",),
    ),
    "G2": Trap(
        "padding rows of a captured step reach a real one",
        (
            f"{KERNELS}/test_attention.py::test_neighbours_and_padding_change_no_bit",
            f"{KERNELS}/test_attention.py::test_a_padded_row_that_is_not_a_number_reaches_no_other",
            f"{KERNELS}/test_projection.py::test_a_row_of_nan_reaches_no_other",
            f"{KERNELS}/test_norm.py::test_a_row_of_nan_reaches_no_other",
            f"{KERNELS}/test_choose.py::test_a_row_is_the_same_alone_among_others_and_beside_padding",
            f"{EXECUTOR}::test_nan_planted_in_padding_reaches_nobody",
            f"{EXECUTOR}::test_the_device_never_waits_for_a_table_that_was_overwritten",
        ),
    ),
    "G3": Trap(
        "a tile reads slots that were never written: 0 times NaN",
        (
            "tests/engine/test_non_finite.py::test_a_later_request_finds_no_trace_in_the_blocks",
            "tests/engine/test_non_finite.py::test_others_of_the_batch_go_on_with_the_same_bits",
            f"{EXECUTOR}::test_values_that_are_not_finite_end_their_request_alone",
            f"{KERNELS}/test_projection.py::test_what_lies_behind_the_rows_and_columns_is_not_read_into_them",
        ),
    ),
    "G4": Trap(
        "a step that is launched ahead repeats or loses a token",
        (
            f"{EXECUTOR}::test_cold_warm_in_chunks_and_preempted",
            f"{EXECUTOR}::test_a_request_that_leaves_disturbs_nobody_at_any_step",
            "tests/engine/test_steps_ahead.py::test_random_arrivals_aborts_and_preemptions_in_flight",
            "tests/engine/test_steps_ahead.py::test_together_cold_warm_in_chunks_and_preempted",
            "tests/engine/test_steps_ahead.py::test_the_blocks_of_a_request_that_left_wait_for_its_steps",
        ),
    ),
    "G5": Trap(
        "a reduction whose order follows the number of tokens",
        (
            f"{KERNELS}/test_projection.py::test_a_row_has_the_same_bits_at_every_number_of_rows",
            f"{KERNELS}/test_norm.py::test_the_order_of_a_sum_is_the_tree_that_the_size_fixes",
        ),
    ),
    "G6": Trap(
        "a variant that fits one card and not another",
        (
            f"{KERNELS}/test_sampling_variants.py::test_variants_compile_without_spills",
            f"{KERNELS}/test_projection_variants.py::test_every_variant_compiles_fits_and_is_pipelined",
            f"{KERNELS}/test_attention_compiled.py::test_kernels_fit_every_card",
        ),
    ),
    "G7": Trap(
        "a kernel is compiled in the middle of serving",
        (f"{KERNELS}/test_variants.py::test_serving_compiles_nothing_that_is_not_known_before",),
    ),
    "G8": Trap(
        "a fault is reported at a later, unrelated call",
        (f"{EXECUTOR}::test_the_kernel_that_failed_is_named_with_its_step_and_requests",),
    ),
    "G9": Trap(
        "cold and warm are never compared",
        (
            f"{EXECUTOR}::test_cold_warm_in_chunks_and_preempted",
            "tests/engine/test_same_tokens.py::test_alone_or_among_others_cold_or_warm_whole_or_in_chunks",
            "tests/engine/test_same_tokens.py::test_prompts_that_part_within_a_block",
        ),
    ),
}
COVERED = [test for trap in TRAPS.values() for test in trap.tests]


def test_every_trap_has_a_test():
    assert list(TRAPS) == [f"G{number}" for number in range(1, 10)]
    assert all(trap.tests for trap in TRAPS.values())


@pytest.mark.parametrize("test", COVERED)
def test_the_tests_that_are_named_exist(test):
    path, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("name", TRAPS)
def test_each_trap_is_a_check_on_the_card(name):
    pattern = re.compile(rf'"[^"\n]*\b{name}\b')
    assert any(pattern.search(path.read_text()) for path in GPU_PARTS)
