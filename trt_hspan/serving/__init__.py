"""Serving with Triton: the repository, the server with its front door, and clients."""
