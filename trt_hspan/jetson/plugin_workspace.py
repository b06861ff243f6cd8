"""The workspace that the plugin requests from TensorRT, in closed form, for one picture.

The same as tiledWorkspace and attentionWorkspaceBytes in plugins/kernels/sparsemax_attention.cpp. A limit that is a
byte too small makes TensorRT refuse the plugin.
"""

from __future__ import annotations

from typing import Final

_ALIGNMENT: Final = 256
#: Beyond these the plain kernels take over; the workspace grows no more.
_MAX_SCORE_CHANNELS: Final = 128
_MAX_VALUE_CHANNELS: Final = 256
_MAX_POSITIONS: Final = 1 << 20
#: Candidate lists and results exist for this many rows at a time.
_CHUNK_ROWS: Final = 16384
_ROW_ALIGNMENT: Final = 128
_TILE_KEYS: Final = 64
#: Of a row: what its list and its threshold take, its bound, and at most so many entries, maxima and lengths of shares.
_ENTRY_BYTES: Final = 8
_RESULT_BYTES: Final = 32
_BOUND_BYTES: Final = 8
_LIST_ENTRIES: Final = 1728
_MAXIMA: Final = 576
_SPLITS: Final = 32
#: In FP32 there are three bounds for so many keys, 16-bit copies of query and key, their center, and facts of a row.
_BOUND_KEYS: Final = 32
_COARSE_BYTES: Final = 16
_PLAIN_ROW_BYTES: Final = 16


def plugin_workspace_bytes(
    positions: int, score_channels: int, value_channels: int, element_bytes: int
) -> int:
    """Bytes for one attention block; `positions` is H * W of its input."""

    tiled = min(positions, _MAX_POSITIONS)
    scores = _up(min(score_channels, _MAX_SCORE_CHANNELS), 8)
    values = _up(min(value_channels, _MAX_VALUE_CHANNELS), 8)
    rows = min(_up(tiled, _ROW_ALIGNMENT), _CHUNK_ROWS)
    tiles = -(tiled // -_TILE_KEYS)
    parts = [element_bytes * tiled * channels for channels in (scores, scores, values)]
    parts += [rows * _RESULT_BYTES, rows * _BOUND_BYTES, 4 * rows * min(8 * tiles, _MAXIMA)]
    parts += [4 * rows * min(tiles, _SPLITS), _ENTRY_BYTES * rows * min(tiled, _LIST_ENTRIES)]
    plain = _PLAIN_ROW_BYTES * positions
    if element_bytes == 4:
        parts.append(tiled * (_COARSE_BYTES + 4 * scores) + 4 * scores + 3 * _bounds(tiled))
        plain += _bounds(positions)
    return max(plain, sum(_up(part, _ALIGNMENT) for part in parts))


def _bounds(keys: int) -> int:
    return 4 * -(keys // -_BOUND_KEYS)


def _up(number: int, multiple: int) -> int:
    return -(number // -multiple) * multiple
