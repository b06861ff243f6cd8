"""Pictures, folders and videos through a runner: tiles, streaming, jobs."""
