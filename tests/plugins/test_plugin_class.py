"""The plugin class on emulated kernels: formats, tactics, what an engine stores, and execution through `enqueue`.

The class is compiled for this test with the kernels' CPU emulation in place of CUDA, so that what TensorRT would call
can be called and its results compared, on a machine without a GPU.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from support.reference import attention_reference

from trt_hspan.native.toolchain import find_host_compiler, find_tensorrt_headers

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).with_name("host")
SOURCES = ("attention_creator", "attention_plugin", "formats", "report", "tactics")

# nvinfer1::DataType and TensorFormat, from NvInferRuntimeBase.h and NvInferRuntime.h
FLOAT, HALF, INT8, BF16 = 0, 1, 2, 7
LINEAR, CHW2, HWC8, HWC = 0, 1, 2, 8
DTYPES = {FLOAT: np.dtype(np.float32), HALF: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}
ELEMENT_TYPES = {FLOAT: 0, HALF: 1, BF16: 2}  # the kernels' own numbers
UNCHANGED = -(2**31)
PLAIN_CONFIG = 1
PADDING = 12345.0  # what lies between rows of inputs


class Plugins:
    """The compiled class, behind methods that take what a test has in hand."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        for name in ("makePlugin", "restorePlugin", "restoreFromNothing", "clonePlugin"):
            getattr(library, name).restype = ctypes.c_void_p
        for name in ("workspaceOf", "configWorkspace"):
            getattr(library, name).restype = ctypes.c_uint64
        for name in ("supports", "isConfigSupported"):
            getattr(library, name).restype = ctypes.c_bool
        library.takeMessages.restype = library.timingCacheId.restype = ctypes.c_char_p
        library.configWorkspace.argtypes = [ctypes.c_int32] * 2 + [ctypes.c_int64] * 4
        library.isConfigSupported.argtypes = [ctypes.c_int32] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_int32]

    def make(self, io_format: str | None = None, attribute: str = "io_format") -> Any:
        fields = (attribute.encode(), io_format.encode()) if io_format is not None else (None, None)
        return self._handle(self.library.makePlugin(*fields))

    def restored(
        self, plugin: Any, *, version: int = UNCHANGED, tactic: int = UNCHANGED, more: bool = False
    ) -> Any:
        return self._handle(self.library.restorePlugin(plugin, version, tactic, more))

    def clone(self, plugin: Any) -> Any:
        return self._handle(self.library.clonePlugin(plugin))

    def messages(self) -> str:
        return str(self.library.takeMessages().decode().strip())

    def supports(
        self, plugin: Any, position: int, types: list[int], formats: list[int], channels: int = 16
    ) -> bool:
        sizes = tensor_sizes(1, channels, channels, 4, 4)
        return bool(self.library.supports(plugin, position, ints(types), ints(formats), sizes))

    def configured(
        self,
        kind: int,
        channels: int,
        values: int,
        *,
        least: tuple[int, int, int] = (1, 8, 8),
        most: tuple[int, int, int] = (1, 8, 8),
        plugin: Any = None,
    ) -> Any:
        """A layer as the builder prepares it for a profile from `least` to `most` (batch, height, width)."""
        plugin = plugin or self.make()
        low, high = (tensor_sizes(batch, channels, values, *size) for batch, *size in (least, most))
        assert self.library.configure(plugin, ints([kind] * 4), ints([LINEAR] * 4), low, high) == 0
        return plugin

    def tactics(self, plugin: Any) -> list[int]:
        actual = (ctypes.c_int32 * 64)()
        count = self.library.tacticsOf(plugin, actual, 64)
        assert count >= 0, self.messages()
        return list(actual[:count])

    def run(
        self, plugin: Any, kind: int, layout: int, query: NDArray[Any], key: NDArray[Any], value: NDArray[Any]
    ) -> tuple[int, NDArray[Any]]:
        """enqueue() on (N, channels, H, W) arrays, and what it wrote, padding included, as (N, channels, H, W)."""
        (batch, channels, height, width), values = query.shape, value.shape[1]
        inputs = [packed(array, kind, layout) for array in (query, key, value)]
        output = np.full_like(inputs[2], -1)
        types, formats = ints([kind] * 4), ints([layout] * 4)
        sizes = tensor_sizes(batch, channels, values, height, width)
        workspace = np.zeros(self.library.workspaceOf(plugin, types, formats, sizes) + 256, np.uint8)
        aligned = (workspace.ctypes.data + 255) // 256 * 256
        status = self.library.changeShapes(plugin, types, formats, sizes)
        if status == 0:
            pointers = (ctypes.c_void_p * 3)(*[each.ctypes.data for each in inputs])
            status = self.library.run(
                plugin,
                types,
                formats,
                sizes,
                pointers,
                ctypes.c_void_p(output.ctypes.data),
                ctypes.c_void_p(aligned),
            )
        return status, output if layout == LINEAR else np.moveaxis(output, -1, 1)

    @staticmethod
    def _handle(address: int | None) -> Any:
        return None if address is None else ctypes.c_void_p(address)


def ints(values: list[int]) -> Any:
    return (ctypes.c_int32 * len(values))(*values)


def tensor_sizes(batch: int, channels: int, values: int, height: int, width: int) -> Any:
    each = [[batch, count, height, width] for count in (channels, channels, values, values)]
    return (ctypes.c_int64 * 16)(*[number for sizes in each for number in sizes])


def packed(array: NDArray[Any], kind: int, layout: int) -> NDArray[Any]:
    """The array as the format lays it out; HWC8 rows are filled up to multiples of 8, with what must not matter."""
    typed = array.astype(DTYPES[kind])
    if layout == LINEAR:
        return np.ascontiguousarray(typed)
    last = np.moveaxis(typed, 1, -1)
    padding = -last.shape[-1] % 8 if layout == HWC8 else 0
    filled = np.pad(last, [(0, 0)] * 3 + [(0, padding)], constant_values=PADDING)
    return np.ascontiguousarray(filled)


@pytest.fixture(scope="module")
def plugins(emulation_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    folder = emulation_folder / "tests" / "cpp"
    output = tmp_path_factory.mktemp("plugin_class") / "libplugin_class.so"
    command: list[str | Path] = [
        find_host_compiler(),
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
    ]
    command += ["-Werror", "-include", HOST / "compat.h", "-I", ROOT / "tests" / "cpp" / "emulation"]
    command += ["-isystem", find_tensorrt_headers(), "-I", ROOT / "plugins" / "tensorrt"]
    command += ["-I", ROOT / "plugins" / "kernels", "-DHSPAN_LEAST_ARCHITECTURE=75", "-o", output]
    command += [
        HOST / "plugin_class.cpp",
        *[ROOT / "plugins" / "tensorrt" / f"{name}.cpp" for name in SOURCES],
    ]
    command += ["-L", folder, "-lhspan_emulated", f"-Wl,-rpath,{folder}"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return Plugins(ctypes.CDLL(str(output)))


@pytest.fixture
def gpu(plugins: Plugins) -> Iterator[Any]:
    """gpu(86) pretends a GPU, gpu(0) none; 8.6 again afterwards."""
    yield plugins.library.pretendGpu
    plugins.library.pretendGpu(86)


def problem(channels: int, values: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Query, key and value of 2 pictures of 9 x 11 positions, on numbers that every type holds exactly."""
    random = np.random.default_rng(seed)
    shapes = [(2, channels, 9, 11), (2, channels, 9, 11), (2, values, 9, 11)]
    query, key, value = (random.integers(-8, 9, shape) / 8 for shape in shapes)
    return query, key, value


@pytest.mark.parametrize(
    ("kind", "layout", "channels", "offered"),
    [
        *[(kind, LINEAR, channels, True) for kind in (FLOAT, HALF, BF16) for channels in (3, 16)],
        *[(kind, HWC8, channels, True) for kind in (HALF, BF16) for channels in (3, 16)],
        (FLOAT, HWC8, 16, False),
        (FLOAT, HWC, 3, True),
        (FLOAT, HWC, 16, True),
        (HALF, HWC, 16, False),  # TensorRT has it for FP32 alone
        (BF16, HWC, 16, False),
        (HALF, CHW2, 16, False),
        (INT8, LINEAR, 16, False),
    ],
)
def test_formats_are_offered_for_all_four_tensors(
    plugins: Plugins, kind: int, layout: int, channels: int, offered: bool
) -> None:
    plugin = plugins.make()
    for position in range(4):
        assert plugins.supports(plugin, position, [kind] * 4, [layout] * 4, channels) == offered


@pytest.mark.parametrize("position", [1, 2, 3])
def test_all_tensors_have_one_format_and_one_type(plugins: Plugins, position: int) -> None:
    plugin = plugins.make()
    formats, types = [HWC8] * 4, [HALF] * 4
    formats[position] = LINEAR
    assert not plugins.supports(plugin, position, types, formats)
    types[position] = BF16
    assert not plugins.supports(plugin, position, types, [HWC8] * 4)


@pytest.mark.parametrize(
    ("choice", "half", "single"),
    [
        ("any", {LINEAR, HWC8}, {LINEAR, HWC}),
        ("linear", {LINEAR}, {LINEAR}),
        ("hwc", set(), {HWC}),
        ("hwc8", {HWC8}, set()),
    ],
)
def test_a_node_may_choose_its_formats(
    plugins: Plugins, choice: str, half: set[int], single: set[int]
) -> None:
    plugin = plugins.clone(plugins.make(choice))
    for kind, expected in ((HALF, half), (FLOAT, single)):
        layouts = (LINEAR, CHW2, HWC8, HWC)
        offered = {layout for layout in layouts if plugins.supports(plugin, 0, [kind] * 4, [layout] * 4)}
        assert offered == expected


def test_times_are_cached_by_version_abi_and_format(plugins: Plugins) -> None:
    """A builder may take a time only from a layer that would run the same kernels on the same layouts."""
    ids = {
        choice: plugins.library.timingCacheId(plugins.make(choice)).decode()
        for choice in (None, "linear", "hwc8")
    }
    header = (ROOT / "plugins" / "tensorrt" / "plugin_abi.h").read_text()
    abi = re.search(r"kABI_VERSION\{(\d+)\}", header)
    assert abi is not None
    start = f"HighSimilarityPassAttention-1-abi{abi[1]}-"
    assert ids == {None: f"{start}any-any", "linear": f"{start}linear-any", "hwc8": f"{start}hwc8-any"}
    assert plugins.library.timingCacheId(plugins.clone(plugins.make("hwc8"))).decode() == ids["hwc8"]


@pytest.mark.parametrize("text", ["", "nchw", "hwc88", "an", "HWC"])
def test_a_format_that_is_none_is_reported(plugins: Plugins, text: str) -> None:
    assert plugins.make(text) is None
    expected = "HighSimilarityPassAttention: layer layer: io_format must be any, linear, hwc or hwc8"
    assert plugins.messages() == expected


@pytest.mark.parametrize("text", ["", "plain", "plain-32x1280", "2"])
def test_a_configuration_that_is_none_is_reported(plugins: Plugins, text: str) -> None:
    assert plugins.make(text, attribute="configuration") is None
    expected = (
        "HighSimilarityPassAttention: layer layer: configuration must be any or the name of a configuration"
    )
    assert plugins.messages() == expected


def test_an_unknown_attribute_is_reported(plugins: Plugins) -> None:
    assert plugins.make("1", attribute="k") is None
    assert plugins.messages() == "HighSimilarityPassAttention: layer layer: unknown attribute k"


@pytest.mark.parametrize("kind", [FLOAT, HALF, BF16])
@pytest.mark.parametrize("capability", [75, 80, 90, 120])
def test_tactics_are_the_configurations_that_run_on_this_gpu(
    plugins: Plugins, gpu: Any, kind: int, capability: int
) -> None:
    gpu(capability)
    count = plugins.library.configCount()
    expected = [
        config + 1
        for config in range(count)
        if plugins.library.isConfigSupported(config, ELEMENT_TYPES[kind], 96, 192, capability)
        and config != PLAIN_CONFIG
    ]
    assert plugins.tactics(plugins.configured(kind, 96, 192)) == expected
    assert expected[0] == 1  # the one that chooses when it runs comes first
    assert (len(expected) > 1) == (capability >= 80)


@pytest.mark.parametrize(("name", "tactic"), [("automatic", 1), ("plain-32x128", 2), ("tiled-two-looks", 3)])
@pytest.mark.parametrize("most", [(1, 8, 8), (2, 64, 64)])
def test_the_configuration_that_a_node_asks_for_is_the_only_tactic(
    plugins: Plugins, gpu: Any, name: str, tactic: int, most: tuple[int, int, int]
) -> None:
    gpu(80)
    plugin = plugins.make(name, attribute="configuration")
    configured = plugins.configured(HALF, 96, 192, most=most, plugin=plugin)
    assert plugins.tactics(configured) == [tactic]
    assert plugins.tactics(plugins.clone(configured)) == [tactic]
    assert plugins.library.timingCacheId(plugin).decode().endswith(f"-any-{name}")


def test_a_configuration_that_does_not_serve_the_layer_is_an_error_and_not_replaced(
    plugins: Plugins, gpu: Any
) -> None:
    gpu(80)
    plugin = plugins.make("tiled-two-looks", attribute="configuration")
    with pytest.raises(AssertionError):
        plugins.configured(HALF, 129, 192, plugin=plugin)
    assert "configuration tiled-two-looks does not run on sm_80 with 129 score channels" in plugins.messages()


@pytest.mark.parametrize("least", [(1, 8, 4), (1, 4, 8)])
@pytest.mark.parametrize("most", [(1, 8, 8), (2, 8, 8)])
def test_a_layer_of_several_sizes_chooses_when_it_runs(
    plugins: Plugins, least: tuple[int, int, int], most: tuple[int, int, int]
) -> None:
    assert plugins.tactics(plugins.configured(HALF, 96, 192, least=least, most=most)) == [1]


def test_what_tiles_do_not_serve_is_left_to_the_choice_at_run_time(plugins: Plugins) -> None:
    """Too many channels, and more than the 2^20 positions that a tile can number."""
    assert plugins.tactics(plugins.configured(HALF, 129, 192)) == [1]
    assert (
        len(plugins.tactics(plugins.configured(HALF, 96, 192, least=(1, 1024, 1024), most=(1, 1024, 1024))))
        > 1
    )
    assert plugins.tactics(
        plugins.configured(HALF, 96, 192, least=(1, 1024, 1025), most=(1, 1024, 1025))
    ) == [1]


def test_without_a_gpu_only_what_runs_on_every_gpu_of_the_library_is_offered(
    plugins: Plugins, gpu: Any
) -> None:
    gpu(75)
    least = plugins.tactics(plugins.configured(HALF, 96, 192))
    gpu(0)
    assert plugins.tactics(plugins.configured(HALF, 96, 192)) == least == [1]


def test_with_channels_unknown_the_plugin_chooses_when_it_runs(plugins: Plugins) -> None:
    assert plugins.tactics(plugins.configured(HALF, -1, 192)) == [1]


def test_another_number_of_tactics_than_there_are_is_refused(plugins: Plugins) -> None:
    plugin = plugins.configured(HALF, 96, 192)
    room = (ctypes.c_int32 * 64)()
    assert plugins.library.askForTactics(plugin, room, 63) != 0
    assert "TensorRT expects 63 tactics" in plugins.messages()


def test_a_tactic_goes_into_the_engine_and_comes_back(plugins: Plugins) -> None:
    plugin = plugins.configured(HALF, 96, 192)
    for tactic in [0, *plugins.tactics(plugin)]:
        assert plugins.library.setTactic(plugin, tactic) == 0
        assert plugins.library.storedTactic(plugin) == tactic
        restored = plugins.restored(plugin)
        assert plugins.library.storedTactic(restored) == tactic
        assert plugins.library.storedTactic(plugins.clone(restored)) == tactic


@pytest.mark.parametrize("tactic", [-1, 1000])
def test_an_unknown_tactic_is_refused(plugins: Plugins, tactic: int) -> None:
    plugin = plugins.configured(HALF, 96, 192)
    assert plugins.library.setTactic(plugin, tactic) != 0
    assert f"tactic {tactic} is unknown to this library; rebuild the engine" in plugins.messages()
    assert plugins.library.storedTactic(plugin) == 0
    assert plugins.restored(plugin, tactic=tactic) is None
    assert f"tactic {tactic} of the engine is unknown to this library" in plugins.messages()


def test_an_engine_of_another_abi_is_refused(plugins: Plugins) -> None:
    plugin = plugins.make()
    assert plugins.restored(plugin, version=1) is None
    assert "built with plugin ABI 1, this library has 4; rebuild the engine" in plugins.messages()


def test_fields_that_the_plugin_never_stored_are_refused(plugins: Plugins) -> None:
    assert plugins.restored(plugins.make(), more=True) is None
    assert "unknown attribute more" in plugins.messages()
    assert plugins.library.restoreFromNothing() is None
    assert "the engine contains no plugin ABI version" in plugins.messages()


def ways() -> Iterator[Any]:
    for kind, name in ((FLOAT, "fp32"), (HALF, "fp16"), (BF16, "bf16")):
        for layout in (LINEAR, HWC) if kind == FLOAT else (LINEAR, HWC8):
            for channels, values in ((16, 24), (5, 11)):
                label = {LINEAR: "linear", HWC8: "hwc8", HWC: "hwc"}[layout]
                yield pytest.param(kind, layout, channels, values, id=f"{name}-{label}-{channels}-{values}")


@pytest.mark.parametrize(("kind", "layout", "channels", "values"), list(ways()))
def test_enqueue_computes_the_operator_in_every_format_with_every_tactic(
    plugins: Plugins, kind: int, layout: int, channels: int, values: int
) -> None:
    """Inputs are multiples of 1/8 up to 1, so scores are exact; sums of weights times values are within
    192 u max|v| (twice the kernels' bound: the reference's weights are not exact either), and the output is rounded
    once to the element type, half a unit in its last place."""
    query, key, value = problem(channels, values)
    expected = attention_reference(query, key, value)
    epsilon = {FLOAT: 0.0, HALF: 2.0**-11, BF16: 2.0**-8}[kind]
    tolerance = 192 * 2.0**-24 + epsilon * np.abs(expected)
    plugin = plugins.configured(kind, channels, values)
    for tactic in [0, *plugins.tactics(plugin), PLAIN_CONFIG + 1]:  # the last is in engines built before
        assert plugins.library.setTactic(plugin, tactic) == 0
        status, output = plugins.run(plugin, kind, layout, query, key, value)
        assert status == 0, plugins.messages()
        result = output.astype(np.float64)
        assert (np.abs(result[:, :values] - expected) <= tolerance).all(), tactic
        assert (result[:, values:] == 0).all()  # between rows, where the format pads them


def test_workspace_is_enough_for_every_tactic_on_every_gpu_and_grows_with_sizes(
    plugins: Plugins, gpu: Any
) -> None:
    def bytes_of(kind: int, batch: int, channels: int, values: int, side: int) -> int:
        types, formats = ints([kind] * 4), ints([LINEAR] * 4)
        sizes = tensor_sizes(batch, channels, values, side, side)
        return int(plugins.library.workspaceOf(plugins.make(), types, formats, sizes))

    for kind in (FLOAT, HALF, BF16):
        for capability in (0, 75, 86):
            gpu(capability)
            sizes = [(1, 96, 192, 48), (2, 96, 192, 48), (2, 96, 192, 96), (2, 128, 256, 256)]
            actual = [bytes_of(kind, *size) for size in sizes]
            assert actual == sorted(actual)
            for (batch, channels, values, side), workspace in zip(sizes, actual, strict=True):
                each = [
                    plugins.library.configWorkspace(
                        config, ELEMENT_TYPES[kind], batch, channels, values, side * side
                    )
                    for config in range(plugins.library.configCount())
                ]
                assert workspace == max(each)
        # O(L): four times the positions take at most four times the bytes, and what does not depend on them
        assert actual[2] <= 4 * actual[1]


def test_launch_errors_reach_tensorrts_logger(plugins: Plugins) -> None:
    """2^31 channels are beyond the kernels' 32-bit numbers."""
    plugin = plugins.make()
    sizes = tensor_sizes(1, 2**31, 8, 1, 1)
    pointers = (ctypes.c_void_p * 3)()
    status = plugins.library.run(plugin, ints([FLOAT] * 4), ints([LINEAR] * 4), sizes, pointers, None, None)
    assert status != 0
    message = plugins.messages()
    assert (
        "cudaErrorInvalidValue (invalid argument), configuration automatic at batch 1, 2147483648 score"
        in message
    )


def test_a_picture_beyond_the_kernels_is_refused_when_shapes_are_set(plugins: Plugins) -> None:
    sizes = tensor_sizes(1, 8, 8, 2**16, 2**16)
    types, formats = ints([FLOAT] * 4), ints([LINEAR] * 4)
    plugin = plugins.make()
    assert plugins.library.configure(plugin, types, formats, sizes, sizes) != 0
    assert "at most 2^31 - 1 positions; got query (1, 8, 65536, 65536)" in plugins.messages()
    assert plugins.library.changeShapes(plugin, types, formats, sizes) != 0


def test_a_format_that_was_never_offered_is_refused_at_run_time(plugins: Plugins) -> None:
    formats = [LINEAR, LINEAR, HWC8, LINEAR]
    sizes = tensor_sizes(1, 8, 8, 4, 4)
    assert plugins.library.changeShapes(plugins.make(), ints([HALF] * 4), ints(formats), sizes) != 0
    assert "input 2 has type 1 and format 2, which the plugin never offered" in plugins.messages()
