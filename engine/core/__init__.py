"""The engine: requests, scheduling, steps; token ids in, token ids out."""
