"""The manifest readers of both languages say the same of every text, the shared corpus and random changes to it."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from support.manifest_corpus import cases, fits

from trt_hspan.engine.manifest import manifest_from_json
from trt_hspan.errors import HspanError

#: What the C++ reader adds, since its program takes pictures: see `requireUpscales` in manifest.cpp.
_BEYOND = ("contains no scale", "io_tensors: expected one", "profiles: expected 3 channels")


def _verdicts(runtime_folder: Path, contents: list[bytes]) -> list[str]:
    """What the C++ reader says of each."""
    program = runtime_folder.parents[1] / "tests" / "cpp" / "runtime" / "manifest_verdicts"
    lines = b"".join(content.hex().encode() + b"\n" for content in contents)
    answers = subprocess.run([program], input=lines, capture_output=True, check=True, timeout=120).stdout
    return answers.decode().split("\n")[:-1]


def test_the_cpp_reader_gives_the_verdicts_of_the_corpus(runtime_folder: Path) -> None:
    corpus = cases()
    answers = _verdicts(runtime_folder, [case.content for case in corpus])
    assert len(answers) == len(corpus)
    assert [
        (case.why, answer)
        for case, answer in zip(corpus, answers, strict=True)
        if not fits(answer, case.says if case.program is None else (case.program,))
    ] == []


def test_both_readers_agree_on_manifests_with_random_changes(runtime_folder: Path) -> None:
    """Bytes that JSON knows are put at random places, taken out, or exchanged by other parts of the same text."""
    draw = random.Random(20)
    accepted = [case.content for case in cases() if case.says == ("accepted",)]
    contents = [_changed(draw, draw.choice(accepted)) for _ in range(3000)]
    verdicts = zip(contents, map(_python_verdict, contents), _verdicts(runtime_folder, contents), strict=True)
    differing = [
        (content, python, cpp)
        for content, python, cpp in verdicts
        if (python == "accepted") != (cpp == "accepted") and not any(part in cpp for part in _BEYOND)
    ]
    assert differing == []


def _python_verdict(content: bytes) -> str:
    try:
        manifest_from_json(content, where="m.json")
    except HspanError as error:
        return str(error)
    return "accepted"


_PIECES = [
    *(bytes([byte]) for byte in b'{}[],:"\\0123456789-+.eE \n\0/\xff\x80\xc2\x1b'),
    *(
        b"null",
        b"true",
        b"NaN",
        b'""',
        b"\\u0000",
        b"\\ud800",
        b"1e400",
        b"-1",
        b"1.0",
        b"\xe2\x80\xae",
        b"[]",
        b"{}",
    ),
]


def _changed(draw: random.Random, content: bytes) -> bytes:
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(content))
        end = at + draw.choice((0, 1, 1, draw.randrange(1, 12)))
        start = draw.randrange(len(content))
        piece = draw.choice((b"", draw.choice(_PIECES), content[start : start + draw.randrange(1, 40)]))
        content = content[:at] + piece + content[end:]
    return content
