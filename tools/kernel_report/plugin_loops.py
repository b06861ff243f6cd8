"""Loops in the machine code of a kernel, read from its disassembly, and what their instructions are.

Blocks, dominators and natural loops are those of Aho, Lam, Sethi & Ullman 2006, section 9.6. A loop's code need not
be contiguous: rarely executed parts stand behind the rest and branch back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

#: The instructions that a loop is about: matrix products on tensor cores, else fused multiply-adds.
_MATRIX: Final = frozenset(("HMMA", "HGMMA", "QGMMA", "UTCHMMA"))
_SCALAR: Final = frozenset(("FFMA", "FFMA2"))


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One loop as the code stands, without the loops inside it.

    Attributes:
        instructions: of the loop itself.
        matrix: of them, products on tensor cores (HMMA).
        scalar: of them, FP32 fused multiply-adds.
        nested_instructions: those of the loops inside.
    """

    instructions: int
    matrix: int
    scalar: int
    nested_instructions: int

    @property
    def matrix_share(self) -> float:
        """Share of tensor core instructions, 0..1."""
        return self.matrix / self.instructions

    @property
    def scalar_share(self) -> float:
        """Share of FP32 multiply-adds, 0..1."""
        return self.scalar / self.instructions


def functions_from_sass(text: str) -> dict[str, list[str]]:
    """Lines of each kernel in nvdisasm's output: opcodes with their operands, and labels such as ".L_x_1:"."""
    functions: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+([^,\s]+)", line):
            name = section[1].strip('"')
            current = functions.setdefault(name[6:], []) if name.startswith(".text.") else None
        elif current is not None:
            if label := re.match(r"\s*(\.L_\w+):", line):
                current.append(f"{label[1]}:")
            elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
                current.append(instruction[1])
    return functions


def opcode_counts(lines: Iterable[str]) -> tuple[int, int, int]:
    """Instructions of some lines of `functions_from_sass`; of them, on tensor cores; of them, FP32 multiply-adds."""
    opcodes = [opcode for line in lines if (opcode := _opcode(line)) not in ("", "NOP")]  # NOP: padding
    return len(opcodes), sum(each in _MATRIX for each in opcodes), sum(each in _SCALAR for each in opcodes)


def product_loops_from_sass(lines: list[str]) -> tuple[Loop, ...]:
    """The loops of one function that multiply outside of the loops inside them, in the order of the code.

    To multiply is to have instructions on tensor cores, and in a function that has none, FP32 multiply-adds.
    """
    loops = [loop for loop, _ in _loops(lines)]
    matrix = [loop for loop in loops if loop.matrix]
    return tuple(matrix or [loop for loop in loops if loop.scalar])


def main_loop_from_sass(lines: list[str]) -> Loop | None:
    """The innermost loop with the most instructions on tensor cores, and if none has any, FP32 multiply-adds."""
    innermost = [loop for loop, is_innermost in _loops(lines) if is_innermost]
    best = max(innermost, key=lambda loop: (loop.matrix, loop.scalar), default=None)
    return best if best is not None and (best.matrix or best.scalar) else None


def _loops(lines: list[str]) -> list[tuple[Loop, bool]]:
    """Every loop by the place of its first block, and whether no other is inside it."""
    blocks = list(_blocks(lines))
    bodies = _natural_loops(_successors(blocks))
    loops = []
    for head, body in sorted(bodies.items()):
        inside = 0
        for other, inner in bodies.items():
            if other != head and inner & body == inner:
                inside |= inner
        own = opcode_counts(line for index in _members(body & ~inside) for line in blocks[index])
        nested = opcode_counts(line for index in _members(inside) for line in blocks[index])
        loop = Loop(instructions=own[0], matrix=own[1], scalar=own[2], nested_instructions=nested[0])
        loops.append((loop, not inside))
    return loops


def _opcode(line: str) -> str:
    """The base name: "@!P0 HMMA.16816.F32 R4, ..." is HMMA; "" for a label."""
    return "" if line.endswith(":") else re.sub(r"^@!?U?P\w+\s+", "", line).split()[0].split(".")[0]


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that are entered at their start only and left at their end only."""
    block: list[str] = []
    for line in lines:
        if line.endswith(":") and block:
            yield block
            block = []
        block.append(line)
        if _opcode(line) in {"BRA", "BRX", "JMP", "CALL", "EXIT", "RET", "BSYNC"}:
            yield block
            block = []
    if block:
        yield block


def _successors(blocks: list[list[str]]) -> list[list[int]]:
    """For each block those that may follow, by number."""
    labels = {line[:-1]: index for index, block in enumerate(blocks) for line in block if line.endswith(":")}
    joins: dict[str, int] = {}  # barrier register -> the block where those that diverged meet
    successors = []
    for index, block in enumerate(blocks):
        for line in block:
            if (barrier := re.search(r"\bBSSY\S*\s+(B\d+),\s*`\((\.L_\w+)\)", line)) and barrier[2] in labels:
                joins[barrier[1]] = labels[barrier[2]]
        last, opcode = block[-1], _opcode(block[-1])
        is_conditional = last.startswith("@")
        following = [index + 1] if index + 1 < len(blocks) else []
        if opcode in {"BRA", "CALL"} and (target := re.search(r"`\((\.L_\w+)\)", last)):
            # "BRA.DIV UR4, `(.L_x_1)" and "BRA.U UP0, `(.L_x_1)" are conditional by an operand. A call of such a label
            # leaves a loop and does not return; functions have other names.
            is_conditional |= re.search(r"(BRA|CALL)\S*\s+`", last) is None
            jump = [labels[target[1]]] if target[1] in labels else []
            successors.append(jump + (following if is_conditional else []))
        elif opcode in {"EXIT", "RET", "JMP", "BRA"}:
            successors.append(following if is_conditional else [])
        elif opcode == "BSYNC" and (register := re.search(r"\bB\d+\b", last)) and register[0] in joins:
            successors.append([joins[register[0]], *(following if is_conditional else [])])
        else:
            successors.append(following)
    return successors


def _natural_loops(successors: list[list[int]]) -> dict[int, int]:
    """Head -> body of every loop; sets of blocks are integers, bit i for block i."""
    predecessors: dict[int, list[int]] = {0: []}
    reached = [0]
    for block in reached:
        for following in successors[block]:
            if following not in predecessors:
                predecessors[following] = []
                reached.append(following)
            predecessors[following].append(block)
    everything = (1 << len(successors)) - 1
    dominators = dict.fromkeys(reached, everything) | {0: 1}
    changed = True
    while changed:
        changed = False
        for block in reached[1:]:
            common = everything
            for before in predecessors[block]:
                common &= dominators[before]
            if (common | 1 << block) != dominators[block]:
                dominators[block] = common | 1 << block
                changed = True
    bodies: dict[int, int] = {}
    for block in reached:
        for head in successors[block]:
            if dominators[block] >> head & 1:
                body, pending = bodies.get(head, 0) | 1 << head, [block]
                while pending:
                    member = pending.pop()
                    if not body >> member & 1:
                        body |= 1 << member
                        pending += predecessors[member]
                bodies[head] = body
    return bodies


def _members(blocks: int) -> Iterator[int]:
    return (index for index in range(blocks.bit_length()) if blocks >> index & 1)
