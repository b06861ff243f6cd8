"""Which board a device is. Owns the comparison of its facts with the boards that are known."""

from __future__ import annotations

from dataclasses import dataclass

from trt_hspan.edge.boards import BOARDS, Board, board_from_name, board_names
from trt_hspan.edge.device import DeviceFacts
from trt_hspan.errors import HspanError

AUTO = "auto"
# Linux has less than the module, because firmware keeps some: an Orin Nano 8GB shows 7.4 GiB, an AGX Thor 122.9.
_LEAST_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A board, and one phrase on how it was found."""

    board: Board
    why: str


def chosen_board(name: str, facts: DeviceFacts) -> Detection:
    """The board that `--board` names; "auto" is the one that this runs on.

    Raises:
        UsageError: there is no board of that name.
        HspanError: "auto", and this is no Jetson or none that is known.
    """
    if name == AUTO:
        return detected_board(facts)
    return Detection(board=board_from_name(name), why="named by --board")


def detected_board(facts: DeviceFacts) -> Detection:
    """The board with these facts: by the module's part number, else by the model's name; by memory among those.

    Raises:
        HspanError: no board fits, or several do.
    """
    if not facts.is_jetson:
        raise HspanError(
            "--board auto",
            "this is no Jetson: it has no /proc/device-tree/model",
            f"name the board: {board_names()}",
        )
    model = " ".join((facts.model or "a device without a model's name").split())[:80]
    memory = facts.memory_bytes
    size = "unknown memory" if memory is None else f"{memory / (1 << 30):.1f} GiB of memory"
    by_module = [board for board in BOARDS if set(board.modules) & set(facts.modules)]
    by_name = [board for board in BOARDS if board.family.lower() in model.lower()]
    candidates = [
        board
        for board in by_module or by_name
        if memory is None or _LEAST_SHARE * board.memory_bytes <= memory <= board.memory_bytes
    ]
    if len(candidates) != 1:
        what = "is none of the known boards" if not candidates else "may be several of the known boards"
        raise HspanError(
            "--board auto", f"{model} with {size} {what}", f"name the closest one: {board_names()}"
        )
    how = f"module {', '.join(facts.modules)}" if by_module else "by its name"
    return Detection(board=candidates[0], why=f"{model} ({how}), {size}")
