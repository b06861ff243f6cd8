"""`trt-hspan build` and scripts/build_engine.py as a user types them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import CommandLine
from support.golden import GOLDEN
from support.permissions import read_only
from support.small_networks import write_attention_network
from torch import nn

from trt_hspan import HighSimilarityPassAttention, onnx_from_model
from trt_hspan.engine.manifest import verify_manifest
from trt_hspan.engine.passport import build_command
from trt_hspan.files import sha256_from_file
from trt_hspan.graph import load_onnx, metadata_from_model, save_onnx
from trt_hspan.native.plugin import default_plugin_path

ROOT = Path(__file__).resolve().parents[2]
RTX = ("--flavor", "tensorrt-rtx")
SMALL = (*RTX, "--max", "24x32")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_attention_network(tmp_path / "net_fp16.onnx", precision="fp16")


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_builds_from_a_checkpoint_and_prints_the_manifest(run: CommandLine, tmp_path: Path) -> None:
    checkpoint = GOLDEN / "small_x2.pt"
    plan = tmp_path / "new" / "x2.plan"
    result = run(
        "build",
        "--checkpoint",
        checkpoint,
        "--precision",
        "fp16",
        "--res-scale",
        0.25,
        *SMALL,
        "-o",
        plan,
        "--json",
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    manifest = verify_manifest(plan)
    assert report.pop("plan") == str(plan)
    assert report == json.loads(manifest.as_json())
    assert (manifest.scale, manifest.precision) == (2, "fp16")
    assert manifest.source_sha256 == sha256_from_file(checkpoint)
    assert metadata_from_model(load_onnx(plan.with_suffix(".onnx"))).res_scale == 0.25
    assert files_under(tmp_path) == {"new/x2.plan", "new/x2.onnx", "new/x2.json"}


def test_prints_a_table_for_people(run: CommandLine, network: Path) -> None:
    result = run("build", "--onnx", network, *SMALL, "-o", network.with_suffix(".plan"))
    assert result.code == 0, result.err
    for words in ("tensorrt-rtx 1.", "fp16", "function", "max 1x3x24x32", "activation memory", "0 plugins"):
        assert words in result.out


def test_without_a_name_the_engine_goes_to_engines(
    run: CommandLine, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(network.parent)
    assert run("build", "--onnx", network.name, *SMALL).code == 0
    assert files_under(network.parent / "engines") == {"net_fp16.plan", "net_fp16.onnx", "net_fp16.json"}


def test_a_model_may_lie_where_its_copy_goes(run: CommandLine, network: Path) -> None:
    content = network.read_bytes()
    assert run("build", "--onnx", network, *SMALL, "-o", network.with_suffix(".plan")).code == 0
    assert network.read_bytes() == content


def test_every_shape_option_reaches_the_profile(run: CommandLine, network: Path) -> None:
    shapes = ("--min", "8x16", "--opt", "16x16", "--max", "24x32")
    batches = ("--min-batch", 2, "--opt-batch", 3, "--max-batch", 4)
    plan = network.with_suffix(".plan")
    result = run("build", "--onnx", network, *RTX, *shapes, *batches, "-o", plan)
    assert result.code == 0, result.err
    profile = verify_manifest(plan).profiles[0]
    assert (profile.min, profile.opt, profile.max) == ((2, 3, 8, 16), (3, 3, 16, 16), (4, 3, 24, 32))


def test_more_profiles_come_after_that_of_the_other_options(run: CommandLine, network: Path) -> None:
    plan = network.with_suffix(".plan")
    more = ("--profile", "min=16x16,opt=24x24,max=2x32x32", "--profile", "min=8x8,max=3x12x12")
    result = run("build", "--onnx", network, *SMALL, *more, "-o", plan)
    assert result.code == 0, result.err
    assert "profile 1" in result.out
    profiles = verify_manifest(plan).profiles
    assert [profile.max for profile in profiles] == [(1, 3, 24, 32), (2, 3, 32, 32), (3, 3, 12, 12)]
    shown = run("inspect", plan)
    assert all(text in shown.out for text in ("1: min 1x3x16x16", "max 2x3x32x32", "2: min 1x3x8x8"))
    reported = json.loads(run("inspect", plan, "--json").out)["facts"]["profiles"]
    assert [item["max"] for item in reported] == [list(profile.max) for profile in profiles]
    assert min(item["activation_memory_bytes"] for item in reported) > 0
    verdict = run("doctor", plan, "--json")
    assert "at its largest shape, 32x32" in verdict.out
    # The command that doctor names builds the same profiles.
    assert build_command(plan, verify_manifest(plan)).count("--profile") == 3
    result = run("build", "--onnx", network, *RTX, *more, "-o", plan)
    assert result.code == 0, result.err
    again = [(profile.min, profile.opt, profile.max) for profile in verify_manifest(plan).profiles]
    expected = [(profile.min, profile.opt, profile.max) for profile in profiles[1:]]
    assert again == expected, "no default profile beside those requested"


def test_the_plugin_on_tensorrt_rtx_builds_and_says_what_is_unknown(run: CommandLine, network: Path) -> None:
    plugin = default_plugin_path()
    plan = network.with_suffix(".plan")
    words = ("--attention", "plugin", "--plugin", plugin, "--target", "sm_86", "--target", "8.9")
    result = run("build", "--onnx", network, *SMALL, *words, "-o", plan)
    assert result.code == 0, result.err
    assert "whether it executes there is unknown" in result.error_line
    assert "of them 1 plugins" in result.out
    assert verify_manifest(plan).targets == ("sm_86", "sm_89")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min", "64x64", "--max", "32x128"], "--min: 64x64 exceeds --max 32x128"),
        (["--max", "64"], "--max: got '64', expected height x width"),
        (
            ["--profile", "64"],
            "--profile: got '64', expected min, opt and max as HxW or NxHxW; write it like min=",
        ),
        (
            ["--profile", "max=64x64"] * 2,
            "--profile: profiles 0 and 1 both take min=1x16x16,opt=1x64x64,max=1x64x64",
        ),
        (["--min-batch", "0"], "--min-batch: got 0"),
        (["--precision", "int3"], "--precision: got 'int3'"),
        (["--precision", "fp32"], "net_fp16.onnx computes in fp16; export it again"),
        (["--flavor", "trt"], "--flavor: got 'trt'"),
        (["--attention", "dense"], "--attention: got 'dense'"),
        (["--target", "sm_99"], "cannot build for sm_99; choose from"),
        (["--target", "ampere"], "--target: got 'ampere'"),
        (["--opt-level", "3"], "--opt-level: TensorRT-RTX tunes nothing"),
        (["--opt-level", "9"], "--opt-level: got 9, expected 0 to 5"),
        (["--workspace-mib", "0"], "--workspace-mib: got 0"),
        (["--opset", "20"], "--opset: is part of an ONNX file already"),
        (["--res-scale", "0.2"], "--res-scale: is part of an ONNX file already"),
        (["--plugin", "a.so"], "--plugin: has no use"),
        (["--checkpoint", "a.pt"], "give exactly one of --checkpoint and --onnx"),
        (["-o", "net.engine"], "name a file that ends in .plan"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: CommandLine, network: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(network.parent)
    flavor = [] if "--flavor" in words else RTX
    result = run("build", "--onnx", network, *flavor, *words)
    assert result.code == 2, result.err
    assert message in result.error_line
    assert files_under(network.parent) == {network.name}


def test_a_node_that_tensorrt_does_not_build_in_bf16_is_named_with_the_option_that_keeps_it_in_float32(
    run: CommandLine, tmp_path: Path
) -> None:
    upsampler = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), HighSimilarityPassAttention(8), upsampler)
    save_onnx(onnx_from_model(network), tmp_path / "up.onnx")
    words = (
        "build",
        "--onnx",
        tmp_path / "up.onnx",
        "--precision",
        "bf16",
        *SMALL,
        "-o",
        tmp_path / "up.plan",
    )
    result = run(*words)
    assert result.code == 1
    option = result.error_line.partition("keep that node in float32: ")[2]
    assert option == "--keep-fp32 2/ConvTranspose"
    assert run(*words, *option.split()).code == 0


def test_no_source_at_all_is_wrong_usage(run: CommandLine) -> None:
    result = run("build")
    assert result.code == 2
    assert "give exactly one of --checkpoint and --onnx" in result.error_line


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), [], "not an ONNX file, or truncated"),
        (lambda path: path.write_bytes(b"PK\x03\x04 a zip"), [], "not an ONNX file"),
        (lambda path: path.unlink(), [], "no such file"),
        (None, ["--attention", "plugin", "--plugin", "gone.so"], "gone.so: there is no plugin library here"),
        (None, ["--target", "sm_75"], "TensorRT built no engine"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(
    run: CommandLine,
    network: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: object,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(network.parent)
    if callable(spoil):
        spoil(network)
    before = files_under(network.parent)
    result = run("build", "--onnx", network, *SMALL, *words, "-o", "engines/net.plan")
    assert result.code == 1, result.err
    assert message in result.error_line
    assert files_under(network.parent) == before
    assert not (network.parent / "engines").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "sm_99"], "cannot build for sm_99"),
        (["--opset", "9"], "--opset: 9 has no fp32"),
        (["--attention", "plugin", "--plugin", "gone.so"], "there is no plugin library here"),
        (["-o", "file/net.plan"], "cannot write"),
    ],
)
def test_nobody_waits_for_an_export_that_cannot_be_built(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    from trt_hspan.precision import engine_job

    def variants_from_path(*_: object, **__: object) -> None:
        raise AssertionError("the export was started")

    monkeypatch.setattr(engine_job, "variants_from_path", variants_from_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    result = run("build", "--checkpoint", GOLDEN / "small_x2.pt", *RTX, *words)
    assert message in result.error_line


def test_a_checkpoint_that_is_none_leaves_nothing(run: CommandLine, tmp_path: Path) -> None:
    checkpoint = tmp_path / "net.pt"
    checkpoint.write_bytes(b"not a checkpoint")
    result = run("build", "--checkpoint", checkpoint, *SMALL, "-o", tmp_path / "e" / "net.plan")
    assert result.code in (1, 2)
    assert "net.pt" in result.error_line
    assert files_under(tmp_path) == {"net.pt"}


def test_an_output_folder_without_permission_is_one_line(run: CommandLine, network: Path) -> None:
    folder = network.parent / "unwritable"
    folder.mkdir()
    with read_only(folder):
        result = run("build", "--onnx", network, *SMALL, "-o", folder / "net.plan")
    assert result.code == 1
    assert "net.plan: no permission to write here" in result.error_line


def script(*words: object, before: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """Runs scripts/build_engine.py in a process of its own, after the Python code `before`."""
    path = ROOT / "scripts" / "build_engine.py"
    arguments = list(map(str, (path, *words)))
    code = f"import runpy, sys\nsys.argv = {arguments!r}\n{before}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code] if before else [sys.executable, *arguments]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, capture_output=True, text=True, timeout=300, check=False, **options
    )


def test_the_script_does_what_the_command_does(network: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = script("--onnx", network.name, *SMALL, "--json", cwd=network.parent, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["plan"] == "engines/net_fp16.plan"
    verify_manifest(network.parent / "engines" / "net_fp16.plan")


def test_ctrl_c_during_the_build_stops_it_and_leaves_nothing(network: Path) -> None:
    """The signal comes while TensorRT is in the middle of its work: at the start of that phase."""
    interrupt = f"""
sys.path.insert(0, {str(ROOT)!r})
import os, signal
from trt_hspan.native.progress import PhaseTracker
start = PhaseTracker.start
def start_and_interrupt(self, name, parent, steps):
    start(self, name, parent, steps)
    if name == "Optimizing graph":
        os.kill(os.getpid(), signal.SIGINT)
PhaseTracker.start = start_and_interrupt
"""
    write_attention_network(network, precision="fp16", blocks=8)
    result = script("--onnx", network, *SMALL, "-o", network.parent / "e" / "net.plan", before=interrupt)
    assert result.returncode == 130, result.stderr
    assert result.stderr == "trt-hspan: interrupted; nothing half-written was left\n"
    assert files_under(network.parent) == {network.name}
    assert not (network.parent / "e").exists()


def test_a_disk_without_room_for_the_plan_is_one_line_and_leaves_nothing(network: Path) -> None:
    """A limit on the size of a file stands in for the disk: both fail in the write itself."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = script("--onnx", network, *SMALL, "-o", network.parent / "e" / "net.plan", preexec_fn=limit)
    assert result.returncode == 1
    assert result.stderr.startswith("trt-hspan: error: ")
    assert "net.plan: cannot write: File too large" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (network.parent / "e").exists()


@pytest.mark.slow
def test_the_published_network_builds_within_4_gb_and_the_plugin_saves_eleven_twelfths(
    tmp_path: Path,
) -> None:
    """The x4 network of the paper with random weights, from preset to FP16 engines."""
    # VmHWM is the peak of this very process; getrusage would count its parent's memory before exec too.
    report_peak = f"""
import atexit
from pathlib import Path
atexit.register(lambda: Path({str(tmp_path / "peak")!r}).write_text(Path("/proc/self/status").read_text()))
"""
    words = (*RTX, "--max", "200x200", "--json", "-o")
    preset = ("--checkpoint", "hspan-x4", "--precision", "fp16")
    built = script(*preset, *words, tmp_path / "function.plan", before=report_peak)
    assert built.returncode == 0, built.stderr
    peak_kib = next(line for line in (tmp_path / "peak").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak_kib.split()[1]) * 1024 < 4e9
    exported = ("--onnx", tmp_path / "function.onnx", "--attention", "plugin")
    built = script(*exported, *words, tmp_path / "plugin.plan")
    assert built.returncode == 0, built.stderr

    memory = {}
    for attention, layers in (("function", 0), ("plugin", 10)):
        manifest = verify_manifest(tmp_path / f"{attention}.plan")
        assert manifest.network_layer_counts.get("PLUGIN_V3", 0) == layers
        memory[attention] = manifest.activation_memory_bytes or 0
    # Two float32 score matrices live at once in the function body: 2 * 4 * (200 * 200)^2 bytes.
    assert memory["function"] >= 2 * 4 * (200 * 200) ** 2
    assert 0 < memory["plugin"] <= memory["function"] / 12
