"""What runs inside Triton: the Python models of a repository. `model.py` files there import their class from here."""
