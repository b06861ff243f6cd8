"""The command line itself: help, versions, and click's own errors in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.command_line import CommandLine

import trt_hspan


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "trt-hspan: No such command 'nonsense'"),
        (["export", "net.pt"], "trt-hspan export: Missing option '--output'"),
        (
            ["validate", "net.onnx", "--limit", "0", "--checkpoint", "net.pt"],
            "trt-hspan validate: Invalid value",
        ),
        (["plugin", "nonsense"], "trt-hspan plugin: No such command"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(
    run: CommandLine, words: list[str], message: str
) -> None:
    result = run(*words)
    assert result.code == 2
    assert message in result.error_line
    assert result.error_line.endswith("--help")


@pytest.mark.parametrize("words", [[], ["plugin"]])
def test_bare_command_shows_its_help(run: CommandLine, words: list[str]) -> None:
    result = run(*words)
    assert result.code == 2
    assert "Commands" in result.out + result.err
    assert "error" not in result.err


def test_version_is_reported(run: CommandLine) -> None:
    result = run("--version")
    assert (result.code, result.out.strip()) == (0, f"trt-hspan {trt_hspan.__version__}")


@pytest.mark.parametrize(
    ("module", "step"), [("torch", "pip install -e '.[export]'"), ("PIL", "pip install -e .")]
)
def test_a_package_that_is_not_installed_is_reported_with_how_to_get_it(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, module: str, step: str
) -> None:
    def needs_it(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("trt_hspan.cli.app.app", needs_it)
    result = run("validate")
    assert result.code == 1
    assert result.error_line == (
        f"trt-hspan: error: {module}: is not installed, and this command needs it; {step}"
    )


@pytest.mark.parametrize(("options", "shown"), [([], False), (["--verbose"], True)])
def test_warnings_of_libraries_are_shown_on_request_only(options: list[str], shown: bool) -> None:
    script = (
        "import sys, warnings; from trt_hspan.cli import app, export\n"
        "def size(request): warnings.warn('odd tensor', UserWarning)\n"
        "export.ExportRequest.static_size = size\n"
        "app.main(['export', 'no.pt', '-o', 'no.onnx', *sys.argv[1:]])\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 1
    assert ("odd tensor" in completed.stderr) == shown
    assert shown or completed.stderr.count("\n") == 1
