"""Which small mistakes a module's source can have. Owns syntax; running tests is `tools.mutation.trial`."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
}
_FUNCTIONS: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mistake:
    """One change to one module.

    Attributes:
        module: its path from the root of the checkout.
        number: which of the module's mistakes, as `mistakes` counts them.
        line: where it is.
        change: such as "n < 4 -> n <= 4".
    """

    module: str
    number: int
    line: int
    change: str


def mistakes(root: Path, module: str) -> list[Mistake]:
    """All that a module can have, in the order of the source."""
    tree = ast.parse((root / module).read_text(encoding="utf-8"))
    return [
        Mistake(module, number, node.lineno, f"{ast.unparse(node)} -> {ast.unparse(changed)}")
        for number, (node, changed) in enumerate(_changes(tree))
    ]


def source_with(root: Path, mistake: Mistake) -> str:
    """The module's source with the mistake in it."""
    tree = ast.parse((root / mistake.module).read_text(encoding="utf-8"))
    node, changed = list(_changes(tree))[mistake.number]
    return ast.unparse(ast.fix_missing_locations(_Replaced(node, changed).visit(tree)))


def sample(root: Path, modules: Sequence[str], count: int, seed: int) -> list[Mistake]:
    """So many of all modules' mistakes, the same for the same seed and sources."""
    every = [mistake for module in modules for mistake in mistakes(root, module)]
    return random.Random(seed).sample(every, min(count, len(every)))


class _Replaced(ast.NodeTransformer):
    def __init__(self, node: ast.expr, changed: ast.expr) -> None:
        self._node, self._changed = node, changed

    def visit(self, node: ast.AST) -> ast.AST:
        return self._changed if node is self._node else self.generic_visit(node)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each expression that can be mistaken, and what it becomes. Annotations and messages are left as they are."""
    for node in _executed(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            changed: ast.expr = copy.deepcopy(node)
            assert isinstance(changed, ast.Compare)
            changed.ops = [_COMPARISONS[type(node.ops[0])]()]
        elif isinstance(node, ast.BoolOp):
            changed = ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            changed = node.operand
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _is_text(node):
            changed = ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            changed = ast.Constant(not node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            changed = ast.Constant(node.value + 1)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            changed = ast.Call(ast.Name(_FUNCTIONS[node.func.id], ast.Load()), node.args, node.keywords)
        else:
            continue
        yield node, changed


def _executed(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions under a node but for annotations, decorators, parts of texts and imports for type checkers."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.expr):
        yield node
    if isinstance(node, ast.JoinedStr):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _executed(child)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )
