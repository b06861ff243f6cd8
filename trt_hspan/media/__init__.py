"""Picture files: formats, color modes, metadata, and rows of pictures that are too large for memory."""
