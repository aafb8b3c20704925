"""Conversations: how what was said reaches the model at the next turn, and is kept."""
