"""A store in Redis, for processes on one machine or on many."""
