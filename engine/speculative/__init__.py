"""Speculative decoding: who drafts, how far, and whether it pays. It never decides what the answer says."""
