"""Everything that knows HTTP or text: settings, command line, API, tokenizer."""
