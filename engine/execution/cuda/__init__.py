"""Steps on a CUDA device: the host packs them, the device knows the rest, graphs launch them."""
