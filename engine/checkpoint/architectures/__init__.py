"""The model families that are served, a file each: how their configuration and tensors are read."""
