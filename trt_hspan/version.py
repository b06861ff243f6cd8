"""The version of the package, which pyproject.toml reads from here."""

from typing import Final

__version__: Final = "0.1.0"
