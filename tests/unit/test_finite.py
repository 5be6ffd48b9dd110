"""Results that are not numbers: the error names engine, outputs, precision and device, and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.annotation.annotator import Annotator
from facesdk.bundle import Bundle
from facesdk.engine import Engine
from facesdk.errors import EngineError
from facesdk.finite import check_finite, checked, not_finite
from facesdk.image import read_image
from tests.bundles import DATA


@pytest.fixture
def engine(save_graph: Any) -> Iterator[Engine]:
    """The root of x, NaN below zero; the reciprocal, infinite of zero; and how large x is, a whole number."""
    nodes = [("Sqrt", ["x"], ["root"]), ("Reciprocal", ["x"], ["inverse"]), ("Size", ["x"], ["size"])]
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    dtypes = {"size": onnx.TensorProto.INT64}
    path = save_graph(nodes, {"x": ["n"]}, {"root": ["n"], "inverse": ["n"], "size": []}, dtypes=dtypes, name="parts")
    with Engine.open(path, "cpu") as opened:
        yield opened


@pytest.mark.parametrize(
    ("x", "broken"),
    [([1, 4], []), ([1, -4], ["root"]), ([0, 4], ["inverse"]), ([0, -4], ["root", "inverse"]), ([], [])],
)
def test_outputs_that_are_not_finite_are_named(engine: Engine, x: list[float], broken: list[str]) -> None:
    array = np.array(x, np.float32)
    assert not_finite(engine(x=array)) == broken
    if not broken:
        assert checked(engine, x=array).keys() == {"root", "inverse", "size"}
        return
    with pytest.raises(EngineError) as caught:
        checked(engine, x=array)
    assert caught.value.fact == (
        f"engine parts.onnx gave NaN or infinite values in {', '.join(broken)}, in fp32 on device cpu"
    )
    assert "fp16" not in str(caught.value)
    assert caught.value.remedy.startswith("export it again")


@pytest.mark.parametrize(
    ("precision", "device", "cause", "remedy"),
    [
        ("fp16", "cuda", "values that fp16 cannot hold", 'on the same device: device="cuda", precision="fp32"'),
        ("fp16", "cpu", "values that fp16 cannot hold", 'on the same device: device="cpu", precision="fp32"'),
        ("bf16", "openvino", "values that bf16 cannot hold", 'device="openvino", precision="fp32"'),
        ("fp32", "tensorrt", "an input far from", 'run it on the CPU: device="cpu"'),
    ],
)
def test_the_remedy_is_that_of_precision_and_device(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, precision: Any, device: str, cause: str, remedy: str
) -> None:
    monkeypatch.setattr(engine, "device", device)
    with pytest.raises(EngineError, match=f"engine e of b gave .* in y, in {precision} on device {device}") as caught:
        check_finite("engine e of b", engine, {"y": np.float32([1, np.nan]), "z": np.float32([0])}, precision)
    assert caught.value.cause.startswith(cause)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "output"),
    [("detector_short", "logits"), ("landmarks", "presence"), ("blendshapes", "scores")],
)
def test_annotation_is_watched(bundle_478: Bundle, tmp_path: Path, name: str, output: str) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    folder = shutil.copytree(bundle_478.folder, tmp_path / "odd")
    for path in Bundle(folder).forms(name).values():
        model = onnx.load(path)
        made = next(node for node in model.graph.node if output in node.output)
        made.output[:] = ["sound" if each == output else each for each in made.output]
        model.graph.node.append(onnx.helper.make_node("Add", ["sound", "nan"], [output]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
        onnx.save(model, path)
    annotator = Annotator(Bundle(folder), "cpu")
    with pytest.raises(EngineError, match=rf"engine {name}\.onnx gave NaN or infinite values in {output}, in fp32"):
        annotator(read_image(DATA / "astronaut.png"))
    annotator.close()
