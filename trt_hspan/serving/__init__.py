"""The server in one process, and clients of it and of Triton."""
