"""Which sizes of pictures a network takes, and what it makes of them: a search by runs on a few, which others do.

The runs need no attention: `model_with_stand_in_attention`, and `export` likewise, put something cheap in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.graph.contract import OnnxMetadata
from trt_hspan.sizes import ImageSize


class NotTakenError(HspanError):
    """The network does not run on a picture of this size."""


#: Output size for an input size. Raises: NotTakenError.
SizeRun = Callable[[ImageSize], ImageSize]

# Windows, strides and pixel shuffles of published networks, and their common multiples.
_MULTIPLES: Final = (*range(1, 11), 12, 14, 16, 20, 24, 28, 32, 48, 64)
_SIDE: Final = 22


@dataclass(frozen=True, kw_only=True)
class TakenSizes:
    """What inputs a network takes.

    Attributes:
        scale: output side over input side; None when that is no whole number, the same for every side.
        size_multiple: sides of inputs are multiples of this.
        min_size: the smallest side.
    """

    scale: int | None
    size_multiple: int
    min_size: int

    def recorded_in(self, metadata: OnnxMetadata) -> OnnxMetadata:
        """The metadata of a network that takes these sizes."""
        return replace(
            metadata,
            scale=self.scale,
            size_multiple=self.size_multiple if self.size_multiple > 1 else None,
            min_size=self.min_size if self.min_size > 1 else None,
        )


def odd_sides(multiple: int) -> ImageSize:
    """Two different odd multiples: a network that takes multiples of 2 * `multiple` alone does not take them."""
    count = -(-_SIDE // multiple) | 1
    return ImageSize(multiple * count, multiple * (count + 2))


def taken_sizes(
    run: SizeRun, *, fixed: ImageSize | None = None, size_multiple: int | None = None
) -> TakenSizes:
    """Runs a network on a few sizes.

    Args:
        run: of one picture.
        fixed: the one size of a network that takes no other.
        size_multiple: what the network is declared to take; None tries those of usual networks.

    Raises:
        NotTakenError: no size is taken; the error is that of the smallest multiple.
    """
    if fixed is not None:
        return TakenSizes(scale=_whole(_ratio(run, fixed)), size_multiple=1, min_size=1)
    multiple, ratio = _first_multiple(run, _MULTIPLES if size_multiple is None else (size_multiple,))
    side = multiple
    while side < min(odd_sides(multiple)):
        if _takes(run, ImageSize(side, side)):
            break
        side *= 2
    return TakenSizes(scale=_whole(ratio), size_multiple=multiple, min_size=min(side, *odd_sides(multiple)))


def _first_multiple(run: SizeRun, multiples: Sequence[int]) -> tuple[int, Fraction | None]:
    """The first one that is taken and scales both sides alike; else the first that is taken at all."""
    refusal: NotTakenError | None = None
    uneven: int | None = None
    for multiple in multiples:
        try:
            ratio = _ratio(run, odd_sides(multiple))
        except NotTakenError as error:
            refusal = refusal or error
            continue
        if ratio is not None:
            return multiple, ratio
        uneven = uneven or multiple
    if uneven is not None:
        return uneven, None
    assert refusal is not None
    raise refusal


def _ratio(run: SizeRun, size: ImageSize) -> Fraction | None:
    output = run(size)
    height, width = (Fraction(*sides) for sides in zip(output, size, strict=True))
    return height if height == width else None


def _whole(ratio: Fraction | None) -> int | None:
    return ratio.numerator if ratio is not None and ratio.denominator == 1 else None


def _takes(run: SizeRun, size: ImageSize) -> bool:
    try:
        run(size)
    except NotTakenError:
        return False
    return True
