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
from typing import Any, Final

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, sha256_from_file, write_text
from trt_hspan.model_repository.deployment import (
    DEFAULT_IMAGE,
    VERSION_FILE,
    deployment_files,
    version_in_image,
)
from trt_hspan.model_repository.networks import (
    Network,
    config_from_text,
    config_text,
    image_model_config,
    raw_model_config,
)
from trt_hspan.native.plugin import LIBRARY_NAME
from trt_hspan.serving.limits import ServingLimits

SUMS: Final = "SHA256SUMS"
#: This package, in the version folder of each Python model: a version keeps the code that it was exported with.
CODE: Final = "trt-hspan.zip"
_MODEL: Final = '''\
"""{doc}"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("trt-hspan.zip")))

from trt_hspan.model_repository.python_models import {kind} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_RAW = {
    "doc": "The network on one of trt-hspan's runners; config.pbtxt says which file.",
    "kind": "RunnerModel",
}
_IMAGE = {"doc": "Picture files in and out, through the raw models of config.pbtxt.", "kind": "ImageModel"}


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
    target, limits, image = Path(output), limits or ServingLimits(), image or DEFAULT_IMAGE
    models = tuple(name for network in networks for name in network.model_names)
    version = 1
    try:
        if not add_version and target.exists() and not (target.is_dir() and not any(target.iterdir())):
            next_step = "choose another folder, or add a version with --add-version"
            raise HspanError(target, "exists and is not empty", next_step)
        have = _versions(target) if add_version else {}
        with _stage(target) as stage:
            if add_version:
                _require_same_tensorrt(target, networks, sorted(have.keys() - set(models)))
                version = max(have.get(name, 0) for name in models) + 1
            for network in networks:
                _write_models(stage, network, limits, version)
            if add_version:
                _move_into(target, stage, have, models, version)
                if (needed := version_in_image(networks)) and (target / VERSION_FILE).is_file():
                    write_text(target / VERSION_FILE, f"{needed}\n")
                if (target / SUMS).is_file():
                    write_text(target / SUMS, _sums(target))
            else:
                for name, text in deployment_files(networks, image=image, limits=limits).items():
                    (stage / name).write_text(text)
                (stage / "start.sh").chmod(0o755)
                for plugin in filter(None, {network.family.plugin for network in networks}):
                    shutil.copyfile(plugin, stage / LIBRARY_NAME)
                write_text(stage / SUMS, _sums(stage))
                if target.exists():
                    target.rmdir()
                stage.replace(target)
    except OSError as error:
        raise error_from_os_error(target, error) from error
    return WrittenRepository(folder=target, version=version, models=models, image=image)


def _versions(root: Path) -> dict[str, int]:
    """Names of the models in a repository, and their latest versions."""
    if not root.is_dir():
        raise HspanError(root, "no such folder" if not root.exists() else "is not a folder", "check the path")
    models = {}
    for config in sorted(root.glob("[!.]*/config.pbtxt")):
        versions = [int(child.name) for child in config.parent.iterdir() if child.name.isdigit()]
        if not versions:
            what = "has no version: a folder named 1 is missing"
            raise HspanError(config.parent, what, "export it again")
        models[config.parent.name] = max(versions)
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


def _write_models(stage: Path, network: Network, limits: ServingLimits, version: int) -> None:
    def write(name: str, config: Any, model: dict[str, str] | None) -> Path:
        folder = stage / name / str(version)
        folder.mkdir(parents=True)
        (stage / name / "config.pbtxt").write_text(config_text(config))
        if model is not None:
            (folder / "model.py").write_text(_MODEL.format(**model))
            _write_package(folder / CODE)
        return folder

    for raw in network.raw_models:
        config = raw_model_config(raw, scale=network.family.scale, limits=limits)
        folder = write(raw.name, config, _RAW if raw.backend == "python" else None)
        for name, source in raw.files.items():
            shutil.copyfile(source, folder / name)
    write(network.image_name, image_model_config(network, limits=limits), _IMAGE)


def _write_package(target: Path) -> None:
    """This package, the same bytes for the same files; pip installs what it imports."""
    package = Path(__file__).parents[1]
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.json")]):
            if "_sources" not in path.parts:
                entry = zipfile.ZipInfo(path.relative_to(package.parent).as_posix(), (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def _require_same_tensorrt(target: Path, networks: Sequence[Network], others: Sequence[str]) -> None:
    """An image has one TensorRT, which models that stay need too."""
    needed, present = version_in_image(networks), target / VERSION_FILE
    before = present.read_text().strip() if present.is_file() else needed
    if needed and others and before != needed:
        what = f"{others[0]} needs TensorRT {before}, the new version {needed}, and an image has one"
        raise HspanError(target, what, "export a repository of its own")


def _move_into(target: Path, stage: Path, have: dict[str, int], models: Sequence[str], version: int) -> None:
    for name in have.keys() & set(models):
        _require_same_interface(target / name, stage / name)
    for (
        name
    ) in models:  # raw models first: the picture model of the new version may need what they newly take
        if name not in have:
            (stage / name).replace(target / name)
            continue
        for part in ("config.pbtxt", str(version)):
            (stage / name / part).replace(target / name / part)


def _require_same_interface(old: Path, new: Path) -> None:
    """A new version must take what clients of the old one send."""
    before, after = (config_from_text((path / "config.pbtxt").read_text()) for path in (old, new))
    for side in ("input", "output"):
        mine, other = (
            [(tensor.name, tensor.data_type, len(tensor.dims)) for tensor in getattr(config, side)]
            for config in (before, after)
        )
        if mine != other:
            raise HspanError(old, f"its {side} differs from the new version's", "export under another name")
    if before.backend != after.backend:
        what = f"runs on the backend {before.backend}, the new version on {after.backend}"
        raise HspanError(old, what, "use --backend")


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
