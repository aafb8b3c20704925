"""Brings what was said to the model at the next turn, and keeps what it answers."""
