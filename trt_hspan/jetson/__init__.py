"""Engines on Jetson boards: what fits, and how fast it can be at best. Torch-free."""
