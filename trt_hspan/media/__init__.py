"""Picture files: formats, colour modes, metadata, and rows of pictures that are too large for memory."""
