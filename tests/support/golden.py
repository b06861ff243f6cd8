"""The golden files: outputs of the official network for given inputs. See golden/README.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent.parent / "golden"
_CASES = json.loads((GOLDEN / "cases.json").read_text())
NETWORK_CASES = sorted(name for name, case in _CASES.items() if case.get("kind") != "attention")
ATTENTION_CASES = sorted(name for name, case in _CASES.items() if case.get("kind") == "attention")


@dataclass(frozen=True)
class GoldenNetwork:
    """A checkpoint with an input and the official network's output."""

    name: str
    checkpoint: Path
    res_scale: float
    case: dict[str, object]
    input: NDArray[np.float32]
    output: NDArray[np.float32]


def load_golden_network(name: str) -> GoldenNetwork:
    arrays = np.load(GOLDEN / f"{name}.npz")
    case = _CASES[name]
    return GoldenNetwork(
        name, GOLDEN / f"{name}.pt", case["res_scale"], case, arrays["input"], arrays["output"]
    )
