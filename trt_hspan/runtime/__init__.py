"""Running a network: one runner per backend behind one protocol."""
