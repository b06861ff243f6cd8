"""Writes a Triton model repository: models, versions, and the files to deploy it; whole or not at all.

Everything at the top that is not a model is a file, because Triton takes every folder there for a model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, sha256_from_file, write_text
from trt_hspan.serving.deployment import DEFAULT_IMAGE, VERSION_FILE, deployment_files, version_in_image
from trt_hspan.serving.engine_networks import Network
from trt_hspan.serving.limits import ServingLimits
from trt_hspan.serving.model_config import config_from_text, config_text, image_model_config, raw_model_config

SUMS: Final = "SHA256SUMS"
#: This package, in the version folder of each Python model: a version keeps the code that it was exported with.
CODE: Final = "trt-hspan.zip"
_RAW_MODEL: Final = '''\
"""The network on one of trt-hspan's runners; config.pbtxt says which file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("trt-hspan.zip")))

from trt_hspan.serving.backend.runner_model import RunnerModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_IMAGE_MODEL: Final = '''\
"""Picture files in, picture files out, through the raw models that config.pbtxt names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("trt-hspan.zip")))

from trt_hspan.serving.backend.image_model import ImageModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, kw_only=True)
class WrittenRepository:
    """What was written: the folder, the version number, models in order, and the image of the Dockerfile."""

    folder: Path
    version: int
    models: tuple[str, ...]
    image: str


def write_repository(
    output: str | os.PathLike[str],
    networks: Sequence[Network],
    *,
    limits: ServingLimits | None = None,
    image: str | None = None,
    add_version: bool = False,
) -> WrittenRepository:
    """Writes a repository, or adds a version to one.

    Args:
        output: the folder; must not exist or be empty, unless a version is added.
        networks: what is served.
        limits: what requests are accepted.
        image: the Triton image for the Dockerfile; None takes NVIDIA's of `DEFAULT_IMAGE`.
        add_version: put these networks into an existing repository as the next version of their models; a server
            that watches the repository takes it up while the older version still answers.

    Raises:
        HspanError: the folder contains something else, a model of that name with another interface, or engines of
            another TensorRT; the disk is full; the folder cannot be written.
    """
    target = Path(output)
    accepted = limits or ServingLimits()
    chosen = image or DEFAULT_IMAGE
    try:
        if add_version:
            return _add_version(target, networks, accepted, chosen)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise HspanError(
                target,
                "exists and is not empty",
                "choose another folder, or add a version with --add-version",
            )
        with _stage(target) as stage:
            for network in networks:
                _write_models(stage, network, accepted, version=1)
            _write_deployment(stage, networks, chosen, accepted)
            write_text(stage / SUMS, _sums(stage))
            if target.exists():
                target.rmdir()
            stage.replace(target)
    except OSError as error:
        raise error_from_os_error(target, error) from error
    return WrittenRepository(folder=target, version=1, models=_model_names(networks), image=chosen)


def repository_models(folder: str | os.PathLike[str]) -> dict[str, list[int]]:
    """Names of the models in a repository, and their versions in order."""
    root = Path(folder)
    if not root.is_dir():
        raise HspanError(root, "no such folder" if not root.exists() else "is not a folder", "check the path")
    models = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and (path / "config.pbtxt").is_file():
            versions = sorted(int(child.name) for child in path.iterdir() if child.name.isdigit())
            if not versions:
                raise HspanError(path, "has no version: a folder named 1 is missing", "export it again")
            models[path.name] = versions
    if not models:
        raise HspanError(root, "contains no model", "write one with trt-hspan serve export")
    return models


@contextmanager
def _stage(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target: on the same disk, and no model of a repository that is watched."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        umask = os.umask(0)
        os.umask(umask)
        stage.chmod(0o777 & ~umask)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _model_names(networks: Sequence[Network]) -> tuple[str, ...]:
    return tuple(name for n in networks for name in (*(raw.name for raw in n.raw_models), n.image_name))


def _write_models(stage: Path, network: Network, limits: ServingLimits, *, version: int) -> None:
    for raw in network.raw_models:
        folder = stage / raw.name / str(version)
        folder.mkdir(parents=True)
        for name, source in network.files.get(raw.name, {}).items():
            shutil.copyfile(source, folder / name)
        if raw.backend == "python":
            _write_python(folder, _RAW_MODEL)
        config = raw_model_config(raw, scale=network.scale, limits=limits)
        (stage / raw.name / "config.pbtxt").write_text(config_text(config))
    folder = stage / network.image_name / str(version)
    folder.mkdir(parents=True)
    _write_python(folder, _IMAGE_MODEL)
    config = image_model_config(network.image_name, network.raw_models, scale=network.scale, limits=limits)
    (stage / network.image_name / "config.pbtxt").write_text(config_text(config))


def _write_python(folder: Path, model: str) -> None:
    """The model's program with this package, the same bytes for the same files; pip installs what that imports."""
    (folder / "model.py").write_text(model)
    package = Path(__file__).parents[1]
    with zipfile.ZipFile(folder / CODE, "w") as archive:
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.schema.json")]):
            if "_sources" not in path.parts:
                entry = zipfile.ZipInfo(path.relative_to(package.parent).as_posix(), (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def _write_deployment(stage: Path, networks: Sequence[Network], image: str, limits: ServingLimits) -> None:
    for name, text in deployment_files(networks, image=image, limits=limits).items():
        (stage / name).write_text(text)
    (stage / "start.sh").chmod(0o755)
    for plugin in {network.plugin for network in networks if network.plugin is not None}:
        from trt_hspan.native.plugin import LIBRARY_NAME

        shutil.copyfile(plugin, stage / LIBRARY_NAME)


def _add_version(
    target: Path, networks: Sequence[Network], limits: ServingLimits, image: str
) -> WrittenRepository:
    have = repository_models(target)
    needed, present = version_in_image(networks), target / VERSION_FILE
    others = sorted(have.keys() - set(_model_names(networks)))
    if needed and others and present.is_file() and present.read_text().strip() != needed:
        raise HspanError(
            target,
            f"{others[0]} needs TensorRT {present.read_text().strip()}, the new version {needed}, and an image has one",
            "export a repository of its own",
        )
    version = max(have.get(name, [0])[-1] for name in _model_names(networks)) + 1
    with _stage(target) as stage:
        for network in networks:
            _write_models(stage, network, limits, version=version)
        for name in _model_names(networks):
            if name in have:
                _require_same_interface(target / name, stage / name)
        # Raw models first: the picture model of the new version may need what they newly take.
        for name in _model_names(networks):
            if name not in have:
                (stage / name).replace(target / name)
                continue
            (stage / name / "config.pbtxt").replace(target / name / "config.pbtxt")
            (stage / name / str(version)).replace(target / name / str(version))
        if needed and present.is_file():
            write_text(present, f"{needed}\n")
        if (target / SUMS).is_file():
            write_text(target / SUMS, _sums(target))
    return WrittenRepository(folder=target, version=version, models=_model_names(networks), image=image)


def _require_same_interface(old: Path, new: Path) -> None:
    """A new version must take what clients of the old one send."""
    before, after = (config_from_text((path / "config.pbtxt").read_text()) for path in (old, new))
    for side in ("input", "output"):
        tensors = [
            [(t.name, t.data_type, len(t.dims)) for t in getattr(config, side)] for config in (before, after)
        ]
        if tensors[0] != tensors[1]:
            raise HspanError(old, f"its {side} differs from the new version's", "export under another name")
    if before.backend != after.backend:
        raise HspanError(
            old, f"runs on the backend {before.backend}, the new version on {after.backend}", "use --backend"
        )


def _sums(folder: Path) -> str:
    """`sha256sum`'s lines for what a server loads: models, their programs, and the plugin library."""
    loaded = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and (path.parent != folder or path.suffix == ".so")
        and "__pycache__" not in path.parts
    ]
    return "".join(f"{sha256_from_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in loaded)
