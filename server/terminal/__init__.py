"""Answers in a terminal: where they come from, how they are shown, and the conversation around them."""
