"""The CUDA kernels again in plain torch, with the same signatures: slow, for any device, and for tests."""
