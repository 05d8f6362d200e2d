"""POST /v1/messages: Anthropic's API, as a dialect of chat completions."""
