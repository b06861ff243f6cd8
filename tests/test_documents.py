"""The documents: links, paths, module names and options that exist; a README of one sitting."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from trt_hspan.cli.app import app

ROOT: Final = Path(__file__).parents[1]
FOLDERS: Final = (
    "trt_hspan",
    "tools",
    "plugins",
    "tests",
    "scripts",
    "benchmarks",
    "docs",
    "cmake",
    "engines",
)
HISTORY: Final = "CHANGELOG.md"  # names what is gone
PRODUCTS: Final = (
    ".plan",
    ".onnx",
    ".json",
    ".yaml",
    ".so",
)  # in engines/: written by commands, ignored by git


def documents() -> list[str]:
    paths = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


DOCUMENTS: Final = documents()


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """What a link may name after `#`: headings, as GitHub writes them."""
    headings = re.findall(r"^#+ +(.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_lines(document: str) -> list[str]:
    """Lines of code blocks, continued lines joined, and code spans."""
    text = text_of(document).replace("\\\n", " ")
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = [line for line in prose.splitlines() if line.startswith("    ")]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [line for fence in fences for line in fence.splitlines()] + indented + spans


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_and_their_anchors_exist(document: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), f"{document} links to {target}"
        assert not anchor or anchor in anchors(path), (
            f"{document} links to {target}, which has no such heading"
        )


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
def test_paths_named_in_code_exist(document: str) -> None:
    pattern = rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./*-]*)"
    for line in code_lines(document):
        for name in re.findall(pattern, line):
            path = name.rstrip(".")
            if path.startswith("engines/") and path.endswith(PRODUCTS):
                continue
            assert any(ROOT.glob(path.rstrip("/"))), f"{document} names {path}"


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
def test_python_names_exist(document: str) -> None:
    for line in code_lines(document):
        for name in re.findall(r"(?<![\w./-])trt_hspan(?:\.[A-Za-z_]\w*)+(?![\w/])", line):
            assert resolves(name), f"{document} names {name}"


def resolves(name: str) -> bool:
    """Whether this is a module, or an attribute of one."""
    module, attributes = name, []
    while True:
        try:
            thing: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
    for attribute in attributes:
        thing = getattr(thing, attribute, None)
    return thing is not None


def test_readme_is_read_in_one_sitting() -> None:
    assert len(text_of("README.md").splitlines()) <= 150


@cache
def application() -> Any:
    return typer.main.get_command(app)


def command_and_words(line: str) -> tuple[Any, list[str]] | None:
    """The typer command that a line calls, and the words after its name; None for other lines."""
    match = re.search(r"(?<![\w/.-])(trt-hspan|hspan-jetson|scripts/build_engine\.py) (.*)", line)
    if match is None:
        return None
    words = re.sub(r"\s[|>#&;].*", "", match[2])
    try:
        rest = shlex.split(words)
    except ValueError:
        rest = words.split()
    path = {"hspan-jetson": ["jetson"], "scripts/build_engine.py": ["build"]}.get(match[1], [])
    command = application()
    for word in [*path, *rest]:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
    return command, rest


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
def test_options_of_commands_exist(document: str) -> None:
    everywhere = {"--help", "-h", "--debug", "--verbose", "-v"}
    for line in code_lines(document):
        called = command_and_words(line)
        if called is None:
            continue
        command, words = called
        if "run" in getattr(command, "commands", {}):  # `serve [NETWORK]` is `serve run [NETWORK]`
            command = command.commands["run"]
        accepted = everywhere | {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if re.fullmatch(r"--[a-z][\w-]*|-[a-zA-Z]", word):
                assert word in accepted, f"{document}: {line.strip()}: {word} is no option of {command.name}"


def program_source(program: str) -> str:
    """Where a program's options are defined: its own source, and the module of tools that a script starts."""
    if program == "hspan-upscale":
        return text_of("plugins/runtime/hspan_upscale.cpp")
    script = text_of(program)
    modules = re.findall(r'(?:from |run_script\(")(tools[\w.]+)', script)
    return script + "".join(text_of(module.replace(".", "/") + ".py") for module in modules)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
def test_options_of_programs_exist(document: str) -> None:
    programs = r"hspan-upscale|(?:scripts|benchmarks)/(?!build_engine)\w+\.py"
    for line in code_lines(document):
        match = re.search(rf"(?<![\w/.-])({programs}) ([^|;&]*)", line)
        if match is None:
            continue
        source = program_source(match[1])
        for option in re.findall(r"(?<!\S)\[?(--[a-z][\w-]*)", match[2]):
            defined = option == "--help" or re.search(rf'[",]{option}[",]', source)
            assert defined, f"{document}: {match[1]} has no option {option}"
