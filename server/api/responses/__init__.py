"""POST /v1/responses: OpenAI's newer API, as a dialect of chat completions."""
