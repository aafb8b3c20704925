"""Turns LangChain's messages into the token ids that a model reads, and answers into messages."""
