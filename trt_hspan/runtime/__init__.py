"""Running a network: one runner per backend behind one protocol, and the pictures that go in and come out."""
