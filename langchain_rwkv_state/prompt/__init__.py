"""Prompts: from LangChain's messages to the token ids that a model reads, and back."""
