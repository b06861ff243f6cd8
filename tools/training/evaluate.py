"""The command that prints figures of a demo network: PSNR-Y and SSIM, or statistics of its attention."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from tools.running import exit_code
from tools.training.attention_kinds import attention_blocks
from tools.training.data import Pair, load_pairs
from tools.training.figures import attention_samples, attention_weights, qualities
from tools.training.tables import (
    attention_table,
    quality_table,
    support_table,
    write_attention_picture,
    write_support_picture,
)
from trt_hspan import load_model
from trt_hspan.errors import HspanError
from trt_hspan.machine.memory import keep_freed_memory


def main() -> int:
    """Prints the figures. Returns: the exit code."""
    arguments = _arguments()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    return exit_code("evaluate_demo", lambda: _run(arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="evaluate_demo", description=__doc__)
    parser.add_argument("checkpoint", help="a path or a name such as hspan-tiny-x4")
    parser.add_argument("--data", type=Path, default=Path("training-output/data/heldout"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pictures, in this order")
    parser.add_argument("--json", action="store_true", help="quality as JSON lines, one per picture")
    parser.add_argument("--attention", type=Path, metavar="PNG", help="attention statistics; draw them there")
    parser.add_argument(
        "--support", type=Path, metavar="PNG", help="what softmax would do with the same scores"
    )
    parser.add_argument(
        "--position",
        type=float,
        nargs=2,
        default=(0.5, 0.5),
        metavar="SHARE",
        help="of the drawn attention: down and to the right in the first picture [0.5 0.5]",
    )
    parser.add_argument("--rows", type=int, default=2048, help="sampled rows per block and picture")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> None:
    model = load_model(arguments.checkpoint)
    pairs = {pair.name: pair for pair in load_pairs(arguments.data, model.config.scale)}
    missing = [name for name in arguments.only or () if name not in pairs]
    if missing:
        raise HspanError(
            arguments.data, f"contains no {', '.join(missing)}", f"it contains {', '.join(pairs)}"
        )
    chosen = [pairs[name] for name in arguments.only or pairs]
    if arguments.attention or arguments.support:
        gray = np.full((100, 160, 3), 128, dtype=np.uint8)
        samples = [
            sample
            for pair in (*chosen, Pair("(constant gray)", gray, gray))
            for sample in attention_samples(model, pair.name, pair.low, rows=arguments.rows, seed=0)
        ]
        if arguments.attention:
            write_attention_picture(samples, arguments.attention)
            print(attention_table(samples))
        if arguments.support:
            low = chosen[0].low
            down, right = (int(s * side) for s, side in zip(arguments.position, low.shape[:2], strict=True))
            weights = attention_weights(
                model, low, block=len(attention_blocks(model)) - 1, position=(down, right)
            )
            write_support_picture(low, (down, right), weights, arguments.support)
            print(support_table(samples))
    elif arguments.json:
        for quality in qualities(model, chosen):
            print(json.dumps(asdict(quality)), flush=True)
    else:
        print(quality_table(list(qualities(model, chosen))))
