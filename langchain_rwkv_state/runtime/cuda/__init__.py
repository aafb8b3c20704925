"""Runs RWKV-7 on a CUDA card: kernels, recorded steps, states that stay on the card."""
