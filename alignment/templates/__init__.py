"""Chat templates: conversations to token ids with a loss mask, and the tokens that end an answer."""
