"""Which small mistakes a module's source can have: those of cosmic-ray's operators that change what is computed."""

from __future__ import annotations

import ast
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

#: Left out: what every test notices (path / name becomes path ** name) and what changes nothing (== becomes is).
_COSMIC_RAY: Final = (
    *("AddNot", "ExceptionReplacer", "NumberReplacer", "ZeroIterationForLoop"),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_FloorDiv", "Div_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("FloorDiv_Mul", "Mod_Add", "Pow_Mul", "BitOr_BitAnd")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("BitAnd_BitOr", "LShift_RShift", "RShift_LShift")),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub"),
)
_OPPOSITES: Final = {"in": "not in", "not": "", "min": "max", "max": "min", "any": "all", "all": "any"}


class _Opposite:
    """The operator that cosmic-ray lacks: membership, and the functions that have an opposite."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "keyword" and node.value in ("in", "not"):
            opposite = node.parent.type == ("comparison" if node.value == "in" else "comp_op")
            opposite = opposite and node.get_previous_leaf().value != "is"
        else:
            opposite = node.type == "name" and node.value in _OPPOSITES and node.get_next_leaf().value == "("
        if opposite:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = _OPPOSITES[node.value]
        return node


_OPERATORS: Final = {**{name: OperatorProvider()[name]() for name in _COSMIC_RAY}, "Opposite": _Opposite()}


@dataclass(frozen=True)
class Mistake:
    """One change to one module.

    Attributes:
        module: its path from the root of the checkout.
        place: line, from 1, and column, from 0.
        operator: what it changes, by cosmic-ray's name.
        occurrence: which of the operator's places in the module, from 0.
    """

    module: str
    place: tuple[int, int]
    operator: str
    occurrence: int


def mistakes(root: Path, module: str) -> list[Mistake]:
    """All that a module can have, also those that change nothing."""
    every = []
    counts = dict.fromkeys(_OPERATORS, 0)
    for node in ast_nodes(get_ast((root / module).read_text(encoding="utf-8"))):
        for name, operator in _OPERATORS.items():
            for place, _ in operator.mutation_positions(node):
                every.append(Mistake(module, place, name, counts[name]))
                counts[name] += 1
    return every


def source_with(root: Path, mistake: Mistake) -> str:
    """The module's source with the mistake in it."""
    source = (root / mistake.module).read_text(encoding="utf-8")
    mutated: str = mutate_code(source, _OPERATORS[mistake.operator], mistake.occurrence)
    return mutated


def change(root: Path, mistake: Mistake) -> str:
    """The line before and after, such as "if n < 4: -> if n <= 4:"."""
    sources = ((root / mistake.module).read_text(encoding="utf-8"), source_with(root, mistake))
    lines = zip(*(source.split("\n") for source in sources), strict=False)
    return next(f"{old.strip()} -> {new.strip()}" for old, new in lines if old != new)


def sample(root: Path, modules: Sequence[str], count: int, seed: int) -> list[Mistake]:
    """So many that change something, at as many places of all modules, the same for the same seed and sources."""
    places: dict[tuple[str, tuple[int, int]], list[Mistake]] = {}
    for module in modules:
        for mistake in mistakes(root, module):
            places.setdefault((module, mistake.place), []).append(mistake)
    generator = random.Random(seed)
    chosen = (generator.choice(places[place]) for place in generator.sample(list(places), len(places)))
    return list(itertools.islice((mistake for mistake in chosen if _is_different(root, mistake)), count))


def _is_different(root: Path, mistake: Mistake) -> bool:
    """Whether the source with the mistake is Python that executes something else."""
    try:
        mutated = ast.parse(source_with(root, mistake))
    except (SyntaxError, AttributeError):  # the latter of cosmic-ray, for `*names` among exceptions
        return False
    source = ast.parse((root / mistake.module).read_text(encoding="utf-8"))
    return ast.dump(_Executed().visit(mutated)) != ast.dump(_Executed().visit(source))


class _Executed(ast.NodeTransformer):
    """Leaves out annotations, decorators, parts of texts, imports for type checkers, marks between arguments, and
    `strict=`, by which `zip` asserts what is so."""

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return None
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and _is_text(node)):
            return ast.Constant("")
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return None
        if isinstance(node, ast.arguments):
            defaults = [*node.defaults, *(default for default in node.kw_defaults if default)]
            return ast.Tuple([self.visit(default) for default in defaults], ast.Load())
        for name in ("annotation", "returns", "decorator_list"):
            if hasattr(node, name):
                setattr(node, name, None)
        return self.generic_visit(node)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )
