"""Executors: batches over models, keys and values on a device."""
