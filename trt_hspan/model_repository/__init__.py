"""Triton, for production: model repositories, and the models of ours that run in it."""
