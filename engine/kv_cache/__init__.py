"""Paged KV cache: blocks, their hashes, who holds them, and the tensors behind them."""
