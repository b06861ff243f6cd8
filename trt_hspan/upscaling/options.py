"""How pictures go through a network: the choices, checked when they are made. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from trt_hspan.errors import UsageError
from trt_hspan.sizes import ImageSize, TileChoice
from trt_hspan.upscaling.tiling import OFFICIAL_MIN_SIZE

Protocol = Literal["tiles", "official"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("tiles", "official")


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions:
    """How pictures go through a network.

    Attributes:
        tile: "auto" takes a picture as a whole where the network's limits, free memory and time allow it, and
            else the largest tile that they allow; "none" as a whole or not at all; (height, width) of tiles.
        overlap: pixels that neighboring tiles share at least; None takes 32 or less.
        protocol: "official" cuts as the official code's `--chop` does, with hard seams and its own margins.
        self_ensemble: the mean over the eight flips and turns of the picture, eight times the work.
        official_min_size: for "official": pixels of a quarter from which it is cut again.

    Raises:
        UsageError: a value makes no sense, or two do not go together.
    """

    tile: TileChoice = "auto"
    overlap: int | None = None
    protocol: Protocol = "tiles"
    self_ensemble: bool = False
    official_min_size: int = OFFICIAL_MIN_SIZE

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UsageError(
                "--protocol", f"got {self.protocol!r}, expected one of {', '.join(PROTOCOLS)}", None
            )
        if isinstance(self.tile, str):
            if self.tile not in ("auto", "none"):
                raise UsageError("--tile", f"got {self.tile!r}, expected auto, none or a size")
            if self.tile == "none" and self.overlap is not None:
                raise UsageError(
                    "--overlap", "is for tiles, and --tile none makes none", "leave out one of them"
                )
        elif len(self.tile) != 2 or min(self.tile) < 1:
            raise UsageError("--tile", f"got {self.tile}, expected a height and a width of at least 1")
        else:
            object.__setattr__(self, "tile", ImageSize(*self.tile))
            if self.overlap is not None and self.overlap > min(self.tile) // 2:
                raise UsageError(
                    "--overlap",
                    f"{self.overlap} pixels are more than half of the tile {self.tile}",
                    "give a smaller overlap or a larger tile",
                )
        if self.overlap is not None and self.overlap < 0:
            raise UsageError("--overlap", f"{self.overlap} pixels make no sense", "give 0 or more")
        if self.protocol == "official" and (self.tile != "auto" or self.overlap is not None):
            raise UsageError(
                "--protocol official", "has its own tiles and margins", "leave out --tile and --overlap"
            )


DEFAULT_OPTIONS: Final = UpscaleOptions()
