"""The forward pass: plain torch, the reference for every faster path."""
