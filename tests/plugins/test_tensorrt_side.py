"""The plugin class inside the real TensorRT-RTX builder, by every way in; the places of virtual functions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trt_hspan.engine.rtx_wheel import library_folder
from trt_hspan.native.sources import sources_folder
from trt_hspan.native.toolchain import find_host_compiler, find_nvcc, find_tensorrt_headers

PROGRAM = Path(__file__).with_name("engine_with_plugin.py")
FORMATS_PROGRAM = Path(__file__).with_name("engine_with_formats.py")

# "open" is dlopen alone, as Triton does it; "load" is TensorRT's plugin registry, as trtexec and Python do it.
WAYS = ["load", "open", "open+load", "load+open", "open+open", "load+load_again", "reload"]


@pytest.fixture(scope="module", params=WAYS)
def report(request: pytest.FixtureRequest, plugin_library: Path) -> dict[str, Any]:
    completed = subprocess.run(
        [sys.executable, PROGRAM, plugin_library, request.param], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


def test_the_creator_is_registered_once(report: dict[str, Any]) -> None:
    assert report["creators"] == [["HighSimilarityPassAttention", "1", ""]]


def test_a_node_of_each_precision_becomes_a_plugin_layer_of_an_engine(report: dict[str, Any]) -> None:
    types = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
    for precision, build in report["builds"].items():
        assert build == {
            "parsed": True,
            "layers": ["PLUGIN_V3"],
            "output_shape": [-1, 12, -1, -1],
            "output_type": types[precision],
            "built": True,
            "errors": [],
            "abi_field_in_plan": True,
        }


def test_shapes_that_do_not_belong_together_are_reported_through_tensorrts_logger(
    report: dict[str, Any],
) -> None:
    assert not report["other_channels"]["parsed"]
    expected = (
        "HighSimilarityPassAttention: query and key must have the same shape; "
        "got query (-1, 8, -1, -1), key (-1, 9, -1, -1), value (-1, 12, -1, -1)"
    )
    assert expected in report["other_channels"]["errors"]


def test_mixed_types_are_reported_through_tensorrts_logger(report: dict[str, Any]) -> None:
    assert not report["other_type"].get("built", False)
    expected = "HighSimilarityPassAttention: query, key and value must be of one type: FP32, FP16 or BF16"
    assert expected in report["other_type"]["errors"]


@pytest.fixture(scope="module")
def formats(plugin_library: Path) -> dict[str, Any]:
    completed = subprocess.run(
        [sys.executable, FORMATS_PROGRAM, plugin_library], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


LINEAR, NHWC = "(Linear) Row major linear format", "(NHWC) Channel major format"
HWC8 = "(Arbitrary) Format with stride order = [4,1,0,3,2]"  # how TensorRT-RTX 1.7.1 names rows of eights


@pytest.mark.parametrize(
    ("case", "inside"),
    [
        *[(f"linear {precision}", LINEAR) for precision in ("fp32", "fp16", "bf16")],
        ("hwc fp32", NHWC),
        *[(f"hwc8 {precision}", HWC8) for precision in ("fp16", "bf16")],
        *[(f"hwc8 forced {precision}", HWC8) for precision in ("fp16", "bf16")],
        *[(f"padded {precision}", HWC8) for precision in ("fp16", "bf16")],
        *[
            (f"any forced {precision}", LINEAR) for precision in ("fp16", "bf16")
        ],  # it keeps the first one offered
        ("hwc forced fp32", NHWC),
    ],
)
def test_tensorrt_hands_over_the_format_that_the_node_names(
    formats: dict[str, Any], case: str, inside: str
) -> None:
    build = formats[case]
    assert (build["parsed"], build["built"], build["errors"]) == (True, True, [])
    assert build["attention_formats"] == [inside] * 3
    assert build["stores_tactic"]


def test_inputs_and_outputs_of_an_engine_may_be_channels_last(formats: dict[str, Any]) -> None:
    for precision in ("fp16", "bf16"):
        for case in (f"hwc8 forced {precision}", f"padded {precision}", f"any forced {precision}"):
            assert len(formats[case]["io_formats"]) == 4
            assert all(
                "(kHWC8) where C is padded to a multiple of 8" in each for each in formats[case]["io_formats"]
            )
    assert all("channel-last FP32" in each for each in formats["hwc forced fp32"]["io_formats"])


def test_hwc_spares_the_transpositions_around_the_layer(formats: dict[str, Any]) -> None:
    """TensorRT-RTX computes convolutions channels-last; what is left is the network's own output."""
    assert formats["linear fp32"]["transpositions"] == 4
    assert formats["hwc fp32"]["transpositions"] == 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_format_that_is_not_offered_is_not_replaced(formats: dict[str, Any], precision: str) -> None:
    """Unpadded rows are FP32's alone: an error, not silently another format."""
    assert not formats[f"hwc {precision}"]["built"]
    assert (
        "Failed to find any supported plugin/custom tactic format" in formats[f"hwc {precision}"]["errors"][0]
    )


def test_the_configuration_that_a_node_names_is_taken_or_is_an_error(formats: dict[str, Any]) -> None:
    """Without a GPU the builder keeps to what runs on each GPU of the library, and tiles want 8.0."""
    assert formats["plain-32x128"]["built"]
    assert not formats["tiled-two-looks"]["built"]
    expected = (
        "configuration tiled-two-looks does not run on sm_75 with 16 score channels and 32 value channels"
    )
    assert any(expected in each for each in formats["tiled-two-looks"]["errors"])


def test_a_format_that_is_none_is_reported_through_tensorrts_logger(formats: dict[str, Any]) -> None:
    assert not formats["nonsense"]["parsed"]
    expected = "HighSimilarityPassAttention: layer attention: io_format must be any, linear, hwc or hwc8"
    assert formats["nonsense"]["errors"][0] == expected


def test_without_tensorrt_in_the_process_the_library_opens_and_stays_silent(plugin_library: Path) -> None:
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print('open')"
    completed = subprocess.run(
        [sys.executable, "-c", script, plugin_library], capture_output=True, text=True, check=True
    )
    assert (completed.stdout, completed.stderr) == ("open\n", "")


OPENED_FIRST = """
import ctypes, sys
library = sys.argv[1]
ctypes.CDLL(library)  # as polygraphy --plugins does, before it imports TensorRT
from trt_hspan.engine import rtx_wheel
rtx_wheel.preload_with_unversioned_name()
import tensorrt_rtx as trt
registry = trt.get_plugin_registry()
count = lambda: sum(creator.name == "HighSimilarityPassAttention" for creator in registry.all_creators)
opened = count()
registry.load_library(library)
print(opened, count())
"""


@pytest.mark.parametrize(("preloaded", "registered"), [(False, 0), (True, 1)])
def test_opened_before_tensorrt_the_plugin_needs_tensorrt_preloaded_or_its_registry(
    plugin_library: Path, preloaded: bool, registered: int
) -> None:
    folder = library_folder()
    assert folder is not None
    (tensorrt,) = folder.glob("libtensorrt_rtx.so.*")
    completed = subprocess.run(
        [sys.executable, "-c", OPENED_FIRST, plugin_library],
        env=os.environ | ({"LD_PRELOAD": str(tensorrt)} if preloaded else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.split() == [str(registered), "1"]


TWO_LIBRARIES = """
import json, sys
from trt_hspan.engine import tensorrt_api
from trt_hspan.errors import HspanError
from pathlib import Path
first, second, way = sys.argv[1:]
trt = tensorrt_api.load_tensorrt("tensorrt-rtx")
if way == "open":
    import ctypes
    builder = trt.Builder(tensorrt_api.tensorrt_logger(trt))  # TensorRT's global logger is the first one it meets
    with tensorrt_api.collected_log(trt) as log:
        ctypes.CDLL(first)
        ctypes.CDLL(second)
    print(json.dumps(log.errors))
else:
    if way == "load after open":
        import ctypes
        ctypes.CDLL(first)
    else:
        tensorrt_api.load_plugin_library(trt, Path(first))
    try:
        tensorrt_api.load_plugin_library(trt, Path(second))
        print(json.dumps("loaded"))
    except HspanError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def other_build(plugin_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin with another hash of its sources: as if it had been compiled from other ones."""
    data = plugin_library.read_bytes()
    start = data.index(b'"source_sha256": "') + len(b'"source_sha256": "')
    path = tmp_path_factory.mktemp("other") / "libhspan_plugin.so"
    path.write_bytes(data[:start] + bytes(reversed(data[start : start + 64])) + data[start + 64 :])
    return path


def two_libraries(first: Path, second: Path, way: str) -> Any:
    command = [sys.executable, "-c", TWO_LIBRARIES, first, second, way]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout.splitlines()[-1])


def test_a_second_build_of_the_plugin_is_refused_and_not_mixed_in(
    plugin_library: Path, other_build: Path
) -> None:
    what = f"this process has opened another build of the plugin, {plugin_library}; this one offers nothing"
    assert two_libraries(plugin_library, other_build, "open") == [f"HighSimilarityPassAttention: {what}"]
    assert two_libraries(plugin_library, other_build, "load after open") == (
        f"{other_build}: this process has opened another library of the plugin already; "
        "start a new one for this library"
    )
    assert two_libraries(plugin_library, other_build, "load") == (
        f"{other_build}: this process has loaded {plugin_library} already; start a new one for this library"
    )


def test_a_copy_of_the_same_build_is_no_other_one(plugin_library: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes(plugin_library.read_bytes())
    assert two_libraries(plugin_library, copy, "open") == []
    assert two_libraries(plugin_library, copy, "load") == "loaded"


LATER_TENSORRT = """
int getInferLibMajorVersion(void) { return 12; }
int getInferLibMinorVersion(void) { return 5; }
void* getPluginRegistry(void) { return getPluginRegistry; }
void* getLogger(void) { return getPluginRegistry; }
"""


def test_a_tensorrt_of_an_unknown_generation_is_named_and_left_alone(
    plugin_library: Path, tmp_path: Path
) -> None:
    """Its registry is code here: a call by number would end the process."""
    source, later = tmp_path / "later.c", tmp_path / "libnvinfer.so.12"
    source.write_text(LATER_TENSORRT)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", later, source], check=True)
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); ctypes.CDLL(sys.argv[2]); print('open')"
    command = [sys.executable, "-c", script, later, plugin_library]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert completed.stdout == "open\n"
    assert completed.stderr == (
        "HighSimilarityPassAttention: libnvinfer.so.12 (TensorRT 12.5) is of a generation that this library does not "
        "know (TensorRT 10 and 11, TensorRT-RTX from 1.7); take a newer trt-hspan\n"
    )


NUMBERS_PROGRAM = r"""
#include <NvInferRuntime.h>

#include <cstdio>
#include <cstring>

using namespace nvinfer1;

// In the Itanium C++ ABI a pointer to a virtual function holds its place in the table, in bytes: plus 1 on x86-64, as
// it is on AArch64.
template <typename Function> size_t number(Function function)
{
    size_t words[2];
    static_assert(sizeof(function) == sizeof(words), "a pointer to a member function");
    std::memcpy(words, &function, sizeof(words));
    return words[0] / sizeof(void*);
}

int main()
{
    using Register = bool (IPluginRegistry::*)(IPluginCreatorInterface&, AsciiChar const*) noexcept;
    using Deregister = bool (IPluginRegistry::*)(IPluginCreatorInterface const&) noexcept;
    Register const registerCreator = &IPluginRegistry::registerCreator;
    Deregister const deregisterCreator = &IPluginRegistry::deregisterCreator;
    std::printf("%d: %zu, %zu, %zu, %zu\n", NV_TENSORRT_MAJOR, number(registerCreator), number(deregisterCreator),
        number(&ILogger::log), number(&ILoggerFinder::findLogger));
}
"""


def test_virtual_functions_are_where_the_public_headers_put_them(tmp_path: Path) -> None:
    """The table in loaded_tensorrt.h against a compiler's view of the headers at hand."""
    (tmp_path / "numbers.cpp").write_text(NUMBERS_PROGRAM)
    command = [find_nvcc(), "-std=c++17", "-w", "-ccbin", find_host_compiler(), "-I", find_tensorrt_headers()]
    subprocess.run([*command, "-o", tmp_path / "numbers", tmp_path / "numbers.cpp"], check=True)
    completed = subprocess.run([tmp_path / "numbers"], capture_output=True, text=True, check=True)
    major, numbers = completed.stdout.strip().split(": ")
    header = (sources_folder() / "plugins" / "tensorrt" / "loaded_tensorrt.h").read_text()
    written = re.search(rf"kNUMBERS_OF_{major}\{{(.*)\}};", header)
    assert written is not None
    assert written[1] == numbers
