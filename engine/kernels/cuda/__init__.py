"""Kernels for CUDA in Triton, each beside its twin in plain torch."""
