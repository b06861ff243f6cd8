"""Imports follow the order that CONTRIBUTING.md states; lazy ones included, those for type checkers not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "trt_hspan"
#: Entry points, which stand above all rooms.
ENTRIES = {PACKAGE, f"{PACKAGE}.__main__"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    paths = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of modules, and of what is taken from them."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    if isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute"
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imported_names(child)


@cache
def all_imports() -> dict[str, frozenset[str]]:
    """What each module imports."""
    return {name: frozenset(imported_names(ast.parse(path.read_text()))) for name, path in modules().items()}


def module_of(name: str) -> str | None:
    """The module of the package that a dotted name is, or is in; None for others."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return None if name in {"", PACKAGE} else name


@cache
def own_imports() -> dict[str, frozenset[str]]:
    """The modules of the package that each module imports."""
    found = {name: {module_of(each) for each in imports} for name, imports in all_imports().items()}
    return {
        name: frozenset(each for each in targets if each not in {None, name})
        for name, targets in found.items()
    }


@cache
def order() -> dict[str, int]:
    """The line of each room in CONTRIBUTING.md, lowest first."""
    block = re.search(
        r"^```imports\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert block is not None
    return {room: line for line, rooms in enumerate(block[1].splitlines()) for room in rooms.split()}


def room_of(module: str) -> str:
    """The room of a module: its first folder, or itself where CONTRIBUTING.md lists the module alone."""
    inside = module.removeprefix(f"{PACKAGE}.")
    return inside if inside in order() else inside.partition(".")[0]


def test_every_room_is_in_the_order_and_every_room_of_the_order_exists() -> None:
    assert {room_of(name) for name in modules().keys() - ENTRIES} == set(order())


def test_no_import_points_upward() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in own_imports().items()
        for target in targets
        if name not in ENTRIES
        and room_of(name) != room_of(target)
        and order()[room_of(target)] >= order()[room_of(name)]
    ]
    assert sorted(wrong) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(own_imports()).prepare()  # raises an error that names the circle


def test_tools_of_the_repository_are_not_imported() -> None:
    others = {"tools", "tests", "scripts", "benchmarks", "support"}
    wrong = {
        name
        for name, imports in all_imports().items()
        if others & {each.partition(".")[0] for each in imports}
    }
    assert wrong == set()


def test_one_module_imports_tensorrt() -> None:
    """By a statement, or by the name of its module."""
    by_statement = {
        name
        for name, imports in all_imports().items()
        if {"tensorrt", "tensorrt_rtx"} & {each.partition(".")[0] for each in imports}
    }
    by_name = {name for name, path in modules().items() if "import_module(MODULE_OF" in path.read_text()}
    assert by_name | by_statement == {f"{PACKAGE}.engine.tensorrt_api"}


def test_onnxruntime_is_imported_only_after_its_telemetry_is_off() -> None:
    """Other modules may take parts of it once `imported_onnxruntime` was called."""
    users = {
        name
        for name, imports in all_imports().items()
        if "onnxruntime" in {each.partition(".")[0] for each in imports}
    }
    home = f"{PACKAGE}.machine.onnx_runtime"
    assert {name for name in users if home not in own_imports()[name]} == {home}
    assert {name for name in users if "onnxruntime" in all_imports()[name]} == {home}
