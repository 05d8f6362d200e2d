"""The HTTP endpoints and the shapes of their bodies."""
