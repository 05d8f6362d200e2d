"""From an event loop to the engine and back."""
