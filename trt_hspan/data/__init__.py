"""Pictures that are shipped. See README.md for their rights."""

from pathlib import Path
from typing import Final

# 300 x 444 RGB, ground truth for scales 2, 3 and 4.
DEMO_PHOTOGRAPH: Final = Path(__file__).parent / "chelsea.png"
