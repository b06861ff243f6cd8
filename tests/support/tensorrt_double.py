"""A double of the `tensorrt` package, as far as the builder uses it: documented API only.

It reads the real ONNX file, records its settings, and refuses what TensorRT refuses: attributes that a release
does not have, a plugin that is not registered, a network with free sizes and no valid profile, times of another
release, code in a plan that was not allowed, weights of other names and sizes. It builds no engine: the plan is a short
JSON text that says of which release it is, what it was built to do, and the hashes of its weights. `tensorrt` itself
cannot be installed on a machine without access to NVIDIA's servers.
"""

from __future__ import annotations

import enum
import hashlib
import importlib.machinery
import json
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    pass


class LayerType(enum.Enum):
    CONVOLUTION = 0
    PLUGIN_V3 = 1
    IDENTITY = 2


class DataType(enum.Enum):
    FLOAT = 0


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0
    TACTIC_DRAM = 4


class CreationFlag10(enum.IntEnum):
    """TensorRT 10: https://docs.nvidia.com/deeplearning/tensorrt, NetworkDefinitionCreationFlag."""

    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class CreationFlag11(enum.IntEnum):
    STRONGLY_TYPED = 0  # accepted and ignored


class CreationFlagOfALaterRelease(enum.IntEnum):
    PREFER_AOT_PYTHON_PLUGINS = 2


class BuilderFlag10(enum.IntEnum):
    FP16 = 0
    REFIT = 4
    TF32 = 7
    VERSION_COMPATIBLE = 13


class BuilderFlag11(enum.IntEnum):
    REFIT = 4
    TF32 = 7
    VERSION_COMPATIBLE = 13


class Level10(enum.IntEnum):
    """HardwareCompatibilityLevel of TensorRT 10.3."""

    NONE = 0
    AMPERE_PLUS = 1


class Level11(enum.IntEnum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class TempfileControlFlag(enum.IntEnum):
    ALLOW_IN_MEMORY_FILES = 0
    ALLOW_TEMPORARY_FILES = 1


class HostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class Named:
    def __init__(self, name: str, **attributes: Any) -> None:
        self.name = name
        self.__dict__.update(attributes)


class Network:
    def __init__(self, flags: int, strongly_typed: bool) -> None:
        self.flags, self.strongly_typed = flags, strongly_typed
        self.layers: list[Named] = []
        self.inputs: list[Named] = []
        self.outputs: list[Named] = []
        self.weights: dict[str, str] = {}

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_layer(self, index: int) -> Named:
        return self.layers[index]

    def get_input(self, index: int) -> Named:
        return self.inputs[index]

    def get_output(self, index: int) -> Named:
        return self.outputs[index]


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        if len(shapes) != 3:
            raise TypeError("min, opt and max")
        self.shapes[name] = shapes


class Config:
    def __init__(self, release: Release) -> None:
        self._release = release
        self.flags = {release.module.BuilderFlag.TF32}  # on by default
        self.pools: dict[MemoryPoolType, int] = {}
        self.profiles: list[Profile] = []
        self.progress_monitor: Any = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level: Any = None
        self.plugins_to_serialize: list[str] = []
        self.timing_cache: TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def create_timing_cache(self, data: bytes) -> TimingCache | None:
        return TimingCache(data or self._release.header)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and not cache.data.startswith(self._release.header):
            self._release.say(Severity.ERROR, "the timing cache is of another TensorRT")
            return False
        self.timing_cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.timing_cache

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.pools[pool] = size

    def add_optimization_profile(self, profile: Profile) -> int:
        for low, best, high in profile.shapes.values():
            if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
                self._release.say(Severity.ERROR, "profiles satisfy MIN<=OPT<=MAX")
                return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1


class TimingCache:
    """A header, and a mark for each build that used it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> HostMemory:
        return HostMemory(self.data)


class Builder:
    def __init__(self, release: Release, logger: ILogger) -> None:
        self._release = release
        release.logger = logger

    def create_network(self, flags: int = 0) -> Network:
        names = self._release.module.NetworkDefinitionCreationFlag
        if flags & ~sum(1 << int(flag) for flag in names):
            raise ValueError(f"unknown flags {flags:#x}")
        typed = self._release.major >= 11 or bool(flags & 1 << int(names.STRONGLY_TYPED))
        return Network(flags, typed)

    def create_builder_config(self) -> Config:
        return Config(self._release)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
        self._release.built = (network, config)
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        for step in range(2):
            if not monitor.step_complete("Building engine", step):
                self._release.say(Severity.ERROR, "Build canceled by user")
                return None
        monitor.phase_finish("Building engine")
        if -1 in network.inputs[0].shape and not config.profiles:
            self._release.say(
                Severity.ERROR, "Network has dynamic or shape inputs, but no optimization profile"
            )
            return None
        self._release.say(Severity.INFO, "Total Activation Memory: 4096 bytes")
        if config.timing_cache is not None:
            config.timing_cache.data += b"+"
        flags = self._release.module.BuilderFlag
        document = {
            "version": self._release.module.__version__,
            "has_code": bool(config.plugins_to_serialize) or flags.VERSION_COMPATIBLE in config.flags,
            "refittable": flags.REFIT in config.flags,
            "weights": network.weights,
        }
        return HostMemory(json.dumps(document).encode())


class ParserError:
    def __init__(self, text: str, node: onnx.NodeProto) -> None:
        self._text, self._node = text, node

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class OnnxParser:
    """Takes a node of a foreign domain as the registered plugin of that name, or fails: no function bodies."""

    def __init__(self, release: Release, network: Network) -> None:
        self._release, self._network = release, network
        self._errors: list[ParserError] = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, data: bytes) -> bool:
        model = onnx.load_model_from_string(data)
        if model.functions:
            raise AssertionError("TensorRT 10.3 would take a function body for the plugin")
        for node in model.graph.node:
            if node.domain and node.op_type not in self._release.plugins:
                self._errors.append(ParserError("Plugin not found, are the plugin name correct?", node))
                return False
            kind = LayerType.PLUGIN_V3 if node.domain else LayerType.__members__.get(node.op_type.upper())
            kind = LayerType.CONVOLUTION if node.op_type == "Conv" else kind or LayerType.IDENTITY
            self._network.layers.append(Named(node.name, type=kind))
        self._network.inputs.extend(map(_tensor, model.graph.input))
        self._network.outputs.extend(map(_tensor, model.graph.output))
        self._network.weights = _weights(model)
        return True


def _tensor(value: onnx.ValueInfoProto) -> Named:
    shape = tuple(dimension.dim_value or -1 for dimension in value.type.tensor_type.shape.dim)
    return Named(value.name, dtype=DataType.FLOAT, shape=shape)


def _weights(model: onnx.ModelProto) -> dict[str, str]:
    """Name -> sizes and a hash of the values."""
    return {
        tensor.name: f"{list(tensor.dims)} {hashlib.sha256(tensor.raw_data).hexdigest()}"
        for tensor in model.graph.initializer
    }


class Engine:
    def __init__(self, release: Release, document: dict[str, Any]) -> None:
        self.release, self.document = release, document

    @staticmethod
    def get_device_memory_size_for_profile_v2(index: int) -> int:
        return 5000 + index

    def serialize(self) -> HostMemory:
        return HostMemory(json.dumps(self.document).encode())


class Runtime:
    def __init__(self, release: Release) -> None:
        self._release = release
        self.engine_host_code_allowed = False
        self.temporary_directory: str | None = None
        self.tempfile_control_flags = 3
        release.runtimes.append(self)

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        document = json.loads(plan)
        if document["has_code"] and not self.engine_host_code_allowed:
            self._release.say(Severity.ERROR, "the plan contains code, which is not allowed")
            return None
        return Engine(self._release, document) if self._release.can_deserialize else None


class Refitter:
    """Weights are exchanged when `refit_cuda_engine` is called, and only all of them."""

    def __init__(self, engine: Engine, logger: ILogger) -> None:
        if not engine.document["refittable"]:
            raise RuntimeError("the engine is not refittable")
        self.engine, self.given = engine, dict[str, str]()

    def get_missing_weights(self) -> list[str]:
        return sorted(self.engine.document["weights"].keys() - self.given.keys())

    def refit_cuda_engine(self) -> bool:
        if self.engine.release.refuses_refit or self.get_missing_weights():
            self.engine.release.say(Severity.ERROR, "the refit failed")
            return False
        self.engine.document["weights"] = self.given
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter = refitter

    def refit_from_bytes(self, data: bytes) -> bool:
        weights = _weights(onnx.load_model_from_string(data))
        known = self._refitter.engine.document["weights"]
        for name, value in weights.items():
            if name not in known or known[name].split("]")[0] != value.split("]")[0]:
                self._refitter.engine.release.say(Severity.ERROR, f"{name} is not of this engine")
                return False
        self._refitter.given = weights
        return True


class PluginRegistry:
    def __init__(self, release: Release) -> None:
        self._release = release

    all_creators: tuple[Named, ...] = ()

    def load_library(self, path: str) -> object | None:
        if Path(path).read_bytes()[:4] != b"\x7fELF":
            return None
        self._release.plugins.add("HighSimilarityPassAttention")
        return object()


class Release:
    """One release of TensorRT. `module` goes into sys.modules as "tensorrt"; `built` is what it was asked to build."""

    def __init__(
        self,
        version: str,
        *,
        creation_flags: type[enum.IntEnum],
        builder_flags: type[enum.IntEnum],
        levels: type[enum.IntEnum] = Level11,
    ) -> None:
        self.major = int(version.split(".", maxsplit=1)[0])
        self.plugins: set[str] = set()
        self.logger: ILogger | None = None
        self.built: tuple[Network, Config] | None = None
        self.can_deserialize = True
        self.refuses_refit = False
        self.header = f"times of {version}:".encode()
        self.runtimes: list[Runtime] = []
        module = types.ModuleType("tensorrt")
        module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)  # others look for the package too
        module.__dict__.update(
            __version__=version,
            ILogger=ILogger,
            IProgressMonitor=IProgressMonitor,
            NetworkDefinitionCreationFlag=creation_flags,
            BuilderFlag=builder_flags,
            MemoryPoolType=MemoryPoolType,
            HardwareCompatibilityLevel=levels,
            TempfileControlFlag=TempfileControlFlag,
            Refitter=Refitter,
            OnnxParserRefitter=OnnxParserRefitter,
            Builder=lambda logger: Builder(self, logger),
            OnnxParser=lambda network, logger: OnnxParser(self, network),
            Runtime=lambda logger: Runtime(self),
            get_plugin_registry=lambda: PluginRegistry(self),
        )
        self.module = module

    def say(self, severity: Severity, message: str) -> None:
        if self.logger is not None:
            self.logger.log(severity, message)


def releases() -> Iterable[Release]:
    """The oldest and the newest release that the project supports, and one that may come."""
    return (
        Release("10.3.0", creation_flags=CreationFlag10, builder_flags=BuilderFlag10, levels=Level10),
        Release("11.4.1", creation_flags=CreationFlag11, builder_flags=BuilderFlag11),
        Release("12.0.0", creation_flags=CreationFlagOfALaterRelease, builder_flags=BuilderFlag11),
    )
