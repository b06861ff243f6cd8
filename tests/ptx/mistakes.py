"""Mistakes made on purpose in copies of the kernels. The interpreter must notice them, or say why it cannot."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.kernel_report.interpreter import ROOT, build_program

_SECONDS = 300
_PLAIN, _TILED = 1, 2  # configurations
_HALF, _FLOAT, _PLAIN_FLOAT = (
    "tiled_attention_half_sm80.cu",
    "tiled_attention_float_sm80.cu",
    "plain_attention_float.cu",
)


@dataclass(frozen=True)
class Mistake:
    """One change of a kernel's source.

    Attributes:
        what: is wrong.
        file: below plugins/.
        right, wrong: what is replaced by what.
        occurrence: of `right` in the file, -1 the last.
        source: compiled with the mistake; the others are as they were.
        config: of the cases that are to notice it.
        harmless: why nothing can notice it; None for a real mistake.
        quick: among those that `make test` makes.
    """

    what: str
    file: str
    right: str
    wrong: str
    occurrence: int = 0
    source: str = _HALF
    config: int = _TILED
    harmless: str | None = None
    quick: bool = False


_SIMT = "device/cuda/simt.h"
_TILE = "kernels/tensor_tile.cuh"
_PASS = "kernels/score_pass.cuh"
_MAXIMA = "kernels/block_maxima.cuh"
_COLLECT = "kernels/collect.cuh"
_VALUES = "kernels/weighted_values.cuh"
_FLOATS = "kernels/weighted_floats.cuh"
_SCORES = "kernels/list_scores.cuh"
_SLICES = "kernels/fma_tile.cuh"
_WAIT = "simt::waitForCopies();\n        simt::syncBlock(); // the buffer"
_REDUNDANT = "between the lanes' last accesses and these lies a barrier of the block in any case"

MISTAKES = (
    Mistake(
        "prepare: no barrier between writing and reading the stage",
        "kernels/prepare.cuh",
        "simt::syncBlock();\n",
        "\n",
        -1,
    ),
    Mistake(
        "first look: keys are used before their copies have arrived",
        _MAXIMA,
        _WAIT,
        "simt::syncBlock(); // the buffer",
    ),
    Mistake(
        "first look: no barrier before keys are used",
        _MAXIMA,
        "simt::syncBlock(); // the buffer",
        "// the buffer",
    ),
    Mistake(
        "second look: keys are used before their copies have arrived",
        _COLLECT,
        _WAIT,
        "simt::syncBlock(); // the buffer",
        quick=True,
    ),
    Mistake(
        "second look: no barrier before keys are used",
        _COLLECT,
        "simt::syncBlock(); // the buffer",
        "// the buffer",
    ),
    Mistake(
        "no barrier after the queries",
        _PASS,
        "simt::waitForCopies();\n    simt::syncBlock();",
        "simt::waitForCopies();",
    ),
    Mistake(
        "keys take the queries' place too early", _PASS, "simt::syncBlock(); // the buffers", "// the buffers"
    ),
    Mistake(
        "dense pass: keys are used before their copies have arrived", _TILE, "simt::waitForCopies();", "", 1
    ),
    Mistake(
        "dense pass: no barrier before keys are used",
        _TILE,
        "simt::syncBlock(); // the tile",
        "// the tile",
    ),
    Mistake(
        "dense pass: no barrier before the first tile is loaded",
        _TILE,
        "simt::syncBlock(); // the buffers",
        "// the buffers",
        harmless=_REDUNDANT,  # the one caller asks the whole block before each pass
    ),
    Mistake("values are not transposed", _SIMT, ".x4.trans.", ".x4."),
    Mistake("b0 and b1 change places", _SIMT, '"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)'),
    Mistake("a1 and a2 change places", _SIMT, '"r"(a[1]), "r"(a[2])', '"r"(a[2]), "r"(a[1])'),
    Mistake(
        "copies of the dense route read the first row instead of nothing",
        _SIMT,
        '"r"(inside ? 16 : 0)',
        '"r"(16)',
        harmless="one number is added to all scores of a row, which leaves its weights, and values get the weight 0",
    ),
    Mistake("copies read past the end", _SIMT, '"r"(bytes)', '"r"(16)'),
    Mistake("a maximum forgets NaN", _SIMT, "max.NaN.f32", "max.f32"),
    Mistake("fragments of B come from other rows", _TILE, "lane % 8 + lane / 16 * 8", "lane % 16"),
    Mistake(
        "a pitch that is no multiple of 16 bytes",
        _TILE,
        "kSCORE_PITCH{kMAX_SCORE_CHANNELS + kPER_COPY}",
        "kSCORE_PITCH{kMAX_SCORE_CHANNELS + 4}",
    ),
    Mistake(
        "lists: one entry more than a share has place for",
        _COLLECT,
        "end > lists.share ?",
        "end > lists.share + 1 ?",
        quick=True,
    ),
    Mistake(
        "lists: the queue is read without syncWarp",
        _COLLECT,
        "simt::syncWarp(); // the blocks",
        "// the blocks",
    ),
    Mistake(
        "lists: counts are written too early", _COLLECT, "simt::syncWarp(); // all lanes", "// all lanes"
    ),
    Mistake(
        "lists: the queue is filled too early", _COLLECT, "simt::syncWarp(); // the queue", "// the queue"
    ),
    Mistake(
        "lists: candidates of other rows count",
        _COLLECT,
        "uint32_t const before = alike & ",
        "uint32_t const before = ",
    ),
    Mistake("sums: values are used before their copies have arrived", _VALUES, "simt::waitForCopies();", ""),
    Mistake(
        "sums: values are used without syncWarp", _VALUES, "simt::syncWarp(); // the values", "// the values"
    ),
    Mistake(
        "sums: entries are used without syncWarp",
        _VALUES,
        "simt::syncWarp(); // the entries are",
        "// the entries are",
    ),
    Mistake(
        "sums: the next row's entries come too early",
        _VALUES,
        "simt::syncWarp(); // the entries'",
        "// the entries'",
    ),
    Mistake(
        "sums: nothing fills up the last product",
        _VALUES,
        "isLast && lane <",
        "isLast && lane < 0 *",
    ),
    Mistake(
        "sums: the last product takes offsets that nobody has written",
        _VALUES,
        "offset < lastOffset ? offset : lastOffset",
        "offset",
    ),
    Mistake("sums: weights and values of different entries", _VALUES, "row / 8 * 2 + row % 2", "row % 4"),
    Mistake("sums: a total begins with the sums of the last one", _VALUES, "Constant<1>{}", "Constant<0>{}"),
    Mistake("sums: two lanes' channels change places", _VALUES, "< 2 ? low : high", "< 2 ? high : low"),
    Mistake("sums: a special value is not noticed", _VALUES, "simt::ballot(zero != 0.0F) != 0", "false"),
    Mistake(
        "dense: no barrier before a tile is used",
        "kernels/dense.cuh",
        "simt::syncBlock(); // the tile",
        "// the tile",
    ),
    Mistake(
        "dense: no barrier before the outputs",
        "kernels/dense.cuh",
        "simt::syncBlock(); // the operands",
        "// the operands",
    ),
    Mistake(
        "finish: no barrier before the outputs are read",
        "kernels/finish.cuh",
        "    simt::syncBlock();\n",
        "",
    ),
    Mistake(
        "FP32 lists: coarse scores stay",
        _SCORES,
        "entry.score = score(entry.key);",
        "",
        source=_FLOAT,
    ),
    Mistake(
        "FP32 lists: no score is refined",
        _SCORES,
        "if (grid == 0.0F ||",
        "if (grid >= 0.0F ||",
        source=_FLOAT,
    ),
    Mistake(
        "FP32 sums: entries are used without syncWarp",
        _FLOATS,
        "simt::syncWarp(); // the entries are",
        "// the entries are",
        source=_FLOAT,
        quick=True,
    ),
    Mistake(
        "FP32 sums: the next row's entries come too early",
        _FLOATS,
        "simt::syncWarp(); // the entries'",
        "// the entries'",
        source=_FLOAT,
    ),
    Mistake(
        "FP32 sums: a group of lanes is left out",
        _FLOATS,
        "mask = kLANES; mask <",
        "mask = 2 * kLANES; mask <",
        source=_FLOAT,
    ),
    Mistake(
        "FP32 dense pass: channels are used before their copies have arrived",
        _SLICES,
        "simt::waitForCopies();",
        "",
        source=_FLOAT,
    ),
    Mistake(
        "FP32 dense pass: no barrier before channels are used",
        _SLICES,
        "simt::syncBlock(); // the slice",
        "// the slice",
        source=_FLOAT,
    ),
    Mistake(
        "FP32 dense: weights are overwritten without syncWarp",
        "kernels/dense_float.cuh",
        "simt::syncWarp(); // the readers",
        "// the readers",
        source=_FLOAT,
        harmless=_REDUNDANT,
    ),
    Mistake(
        "FP32 dense: weights are read without syncWarp",
        "kernels/dense_float.cuh",
        "simt::syncWarp(); // the weights",
        "// the weights",
        source=_FLOAT,
    ),
    Mistake(
        "plain: no barrier after weights and values",
        "kernels/plain_weighted_sum.cuh",
        "simt::syncBlock(); // weights",
        "// weights",
        source=_PLAIN_FLOAT,
        config=_PLAIN,
        quick=True,
    ),
    Mistake(
        "plain: values past the last channel are read",
        "kernels/plain_weighted_sum.cuh",
        "channel < channels ? stage.values[channel][key] : 0.0F",
        "stage.values[channel][key]",
        source=_PLAIN_FLOAT,
        config=_PLAIN,
    ),
    Mistake(
        "a barrier of the block for half a warp",
        "kernels/finish.cuh",
        "    simt::syncBlock();\n",
        "    if (simt::laneIndex() < 16) { simt::syncBlock(); }\n",
    ),
    Mistake(
        "thresholds rounded otherwise",
        "kernels/exact_threshold.cuh",
        "floorQuotient(sum - kONE, count)",
        "floorQuotient(sum - kONE / 2, count)",
    ),
    Mistake(
        "lists: thresholds rounded otherwise",
        "kernels/list_threshold.cuh",
        "floorQuotientByFloats(sum - kONE, set.above)",
        "floorQuotientByFloats(sum - kONE / 2, set.above)",
    ),
    Mistake("a look does not mask keys past the end", _PASS, "2 * i + j % 2 < own", "true"),
    Mistake("keys past the end are not masked", _TILE, "own + 8 * i + j % 2 >= key.positions", "false"),
)


def broken_source(mistake: Mistake) -> str:
    """The source file with the mistake."""
    parts = (ROOT / "plugins" / mistake.file).read_text().split(mistake.right)
    assert len(parts) > 1, f"{mistake.file} has changed; change the mistake as well: {mistake.right}"
    at = mistake.occurrence % (len(parts) - 1) + 1
    return mistake.right.join(parts[:at]) + mistake.wrong + mistake.right.join(parts[at:])


def is_noticed(mistake: Mistake, folder: Path) -> tuple[bool, str]:
    """Makes the mistake in a copy below `folder` and runs the quick list: whether a case fails, and its line."""
    plugins = folder / "plugins"
    for name in ("kernels", "device"):
        shutil.copytree(ROOT / "plugins" / name, plugins / name)
    (plugins / mistake.file).write_text(broken_source(mistake))
    program = build_program("run_cases", 80, replaced={mistake.source: plugins})
    command = [program, "80", "quick", "--config", str(mistake.config), "--stop"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return True, "does not end"
    finally:
        program.unlink()
    failures = [line for line in process.stdout.splitlines() if " runs " in line and not line.endswith(" ok")]
    return process.returncode != 0, failures[0] if failures else process.stderr.strip()
