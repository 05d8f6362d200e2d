"""What a launch of the sampling kernels would find divisible by 16: ahead of time it must be said."""

from collections.abc import Mapping


def divisible_arguments(signature: Mapping[str, str], **sizes: int) -> frozenset[str]:
    """Return the addresses, which torch aligns, and those of the named sizes that are multiples of 16."""
    pointers = {name for name, kind in signature.items() if kind.startswith("*")}
    return frozenset(
        pointers | {name for name, size in sizes.items() if size % 16 == 0 and name in signature}
    )
