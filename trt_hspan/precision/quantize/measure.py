"""What a variant of a network costs against float32, in dB, on tiles of held-out pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.metrics import EXACT_DB, agreement, mean_psnr_y, psnr_y
from trt_hspan.media.pixels import image_from_tensor, tensor_from_image
from trt_hspan.precision.crops import Tile
from trt_hspan.runtime.onnxruntime_session import cpu_network
from trt_hspan.runtime.runner import Float32Array


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Means over tiles. PSNR-Y leaves out tiles that float32 gets exactly right, such as black ones: it is infinite.

    Attributes:
        psnr_db: of the raw output against float32's; infinite when they are equal.
        worst_psnr_db: of the worst tile.
        psnr_y_db: luma against ground truth by the official protocol; None without any.
        loss_db: how far `psnr_y_db` is below float32's; negative when it is above. None without ground truth.
    """

    psnr_db: float
    worst_psnr_db: float
    psnr_y_db: float | None
    loss_db: float | None


class HeldOut:
    """Tiles, and the float32 network's output on them.

    Args:
        reference: the network in float32.
        tiles: at least one; all with ground truth or none. They are kept in memory.
        where: what errors name.
        on_tile: called after each tile, for progress.

    Raises:
        HspanError: there are no tiles, float32 gets each of them exactly right, or the network fails.
    """

    def __init__(
        self,
        reference: onnx.ModelProto,
        tiles: Iterable[Tile],
        *,
        where: str,
        on_tile: Callable[[], None] | None = None,
    ) -> None:
        self._where = where
        network = cpu_network(reference, where)
        self._tiles: list[tuple[Tile, Float32Array]] = []
        for tile in tiles:
            self._tiles.append((tile, network.run(tensor_from_image(tile.low))))
            if on_tile is not None:
                on_tile()
        if not self._tiles:
            raise HspanError(where, "there are no held-out pictures", "name some with --held-out")
        self._reference_db = [self._quality(output, tile) for tile, output in self._tiles]
        if all(quality == EXACT_DB for quality in self._reference_db):
            raise HspanError(
                where,
                "float32 gets every held-out picture exactly right, so that no loss can be measured",
                "hold out photographs",
            )

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def reference_psnr_y_db(self) -> float | None:
        """The float32 network's own mean PSNR-Y; None without ground truth."""
        return self._mean(self._reference_db)

    def measure(self, model: onnx.ModelProto) -> Measurement:
        """Runs a variant on every tile. Raises: HspanError when it fails or gives values that are not finite."""
        network = cpu_network(model, self._where)
        psnrs, qualities = [], []
        for tile, expected in self._tiles:
            output = network.run(tensor_from_image(tile.low))
            psnrs.append(agreement(output, expected).psnr_db)
            qualities.append(self._quality(output, tile))
        mean = self._mean(qualities)
        reference = self.reference_psnr_y_db
        return Measurement(
            psnr_db=float(np.mean(psnrs)),
            worst_psnr_db=float(np.min(psnrs)),
            psnr_y_db=mean,
            loss_db=None if mean is None or reference is None else reference - mean,
        )

    def _quality(self, output: Float32Array, tile: Tile) -> float | None:
        if tile.truth is None:
            return None
        height, width = tile.truth.shape[:2]  # without what the tile has grown by
        image = image_from_tensor(output, where=f"{self._where} on {tile.name}")[:height, :width]
        return min(psnr_y(image, tile.truth, tile.scale), EXACT_DB)

    def _mean(self, qualities: Sequence[float | None]) -> float | None:
        """Over the tiles where float32 has an error; None without ground truth."""
        measured = [quality for quality in qualities if quality is not None]
        references = [quality for quality in self._reference_db if quality is not None]
        return mean_psnr_y(measured, references) if measured else None
