"""Bounds on what one HTTP request may ask for; ranges of sampling fields live in SamplingParams."""

MAX_CHOICES = 128
"""Answers that one request may ask for: number of prompts times `n`."""

MAX_EMBEDDING_INPUTS = 2048
MAX_EMBEDDING_VALUES = 2**22
"""Numbers in one reply of /v1/embeddings, each about 12 bytes of JSON, or 5 of base64."""

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_ALLOWED_TOKEN_IDS = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 256
MAX_GRAMMAR_CHARS = 2**16
"""Characters of a JSON schema, a regular expression, a list of choices or a grammar."""

MAX_GRAMMAR_CHOICES = 1024
MAX_LOGPROB_ENTRIES = 2**20
"""Pairs of token and logprob in one reply, which is kept in memory (about 120 bytes each) until it is sent.

Of a stream only the prompt's count: those of the answer leave as they come.
"""

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_CACHE_SALT_CHARS = 256
MAX_USER_CHARS = 1024

MAX_MILLISECONDS = 86_400_000
"""A day: the longest that a deadline may lie ahead."""

MAX_WARNINGS = 16
"""Entries of `warnings[]`; the last one says how many more there were."""

MAX_SHOWN_CHARS = 80
"""Characters of a value or name sent by the client that an error may repeat."""

INLINE_BYTES = 4096
"""Parsing, templates and tokenisation of more than this run on a thread: about 1 ms of event loop."""
