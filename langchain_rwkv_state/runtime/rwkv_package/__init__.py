"""The adapter to the `rwkv` package."""
