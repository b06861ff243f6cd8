"""The network that a command names, whatever file it is in."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.small_networks import attention_network, write_attention_network

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import OnnxMetadata, metadata_from_model, save_onnx, with_metadata
from trt_hspan.precision import network
from trt_hspan.precision.network import no_progress, variants_from_path


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return write_attention_network(tmp_path / "net.onnx", precision="bf16")


def test_an_onnx_file_is_read_with_its_metadata(onnx_file: Path, tmp_path: Path) -> None:
    upper_case = tmp_path / "OTHER.ONNX"
    shutil.copy(onnx_file, upper_case)
    for path in (onnx_file, upper_case):
        variants = variants_from_path(path)
        assert (variants.where, variants.stored) == (str(path), "bf16")
        assert variants.metadata == OnnxMetadata(scale=1, precision="bf16", source_sha256="c" * 64)
    with pytest.raises(UsageError, match="--res-scale: is part of an ONNX file already; leave it out"):
        variants_from_path(onnx_file, res_scale=0.1)


def test_what_a_file_does_not_say_is_learned_from_runs(tmp_path: Path) -> None:
    model = attention_network()
    save_onnx(with_metadata(model, OnnxMetadata()), tmp_path / "net.onnx")
    assert variants_from_path(tmp_path / "net.onnx").metadata == OnnxMetadata(scale=1)


def test_a_network_without_the_attention_is_refused_by_its_name(tmp_path: Path) -> None:
    model = attention_network()
    del model.graph.node[1]
    model.graph.node[1].input[0] = "conv0"
    save_onnx(model, tmp_path / "plain.onnx")
    with pytest.raises(HspanError, match=r"plain\.onnx: contains no hspan::"):
        variants_from_path(tmp_path / "plain.onnx")


def test_an_engine_is_read_from_the_model_beside_it(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def verify_manifest(plan: Path) -> Any:
        asked.append(plan)
        return SimpleNamespace(onnx_file=onnx_file.name)

    monkeypatch.setattr(network, "verify_manifest", verify_manifest)
    plan = onnx_file.with_name("engine.plan")
    variants = variants_from_path(plan)
    assert (asked, variants.where, variants.stored) == ([plan], str(plan), "bf16")
    with pytest.raises(UsageError, match="--res-scale"):
        variants_from_path(plan, res_scale=0.1)


def test_a_shipped_preset_is_read_as_onnx_where_there_is_no_torch(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "shipped_onnx", lambda name, res_scale: onnx_file)
    variants = variants_from_path("hspan-tiny-x2", res_scale=0.1)
    assert (variants.where, variants.stored) == ("hspan-tiny-x2", "bf16")


def test_anything_else_is_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_hspan.export import to_onnx

    monkeypatch.setattr(to_onnx, "variants_from_checkpoint", lambda name, res_scale: (name, res_scale))
    for name, res_scale in (("hspan-tiny-x2", None), ("net.pt", 0.2), (Path("net.safetensors"), 0.2)):
        assert variants_from_path(name, res_scale=res_scale) == (name, res_scale)


def test_metadata_of_the_file_is_that_of_the_variants(tmp_path: Path) -> None:
    metadata = replace(metadata_from_model(attention_network()), scale=4, min_size=8)
    save_onnx(with_metadata(attention_network(), metadata), tmp_path / "net.onnx")
    assert variants_from_path(tmp_path / "net.onnx").metadata == metadata
    no_progress("reading", 0, 0)
