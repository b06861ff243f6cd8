"""Wheels with the compiled libraries inside, and the source distribution: what `make wheel` runs."""
