"""A complete face swap bundle of the right signature, made in a moment: what it computes can be foretold.

The identity is the contrast of a crop's 8 x 8 patches without the outer ones, and the decoder paints it into an
ellipse: a swapped crop then has nearly the identity that it was given, as a real network's has.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.store import Store

NAME, SIZE, PATCHES = "hififace-tiny", 64, 8
CONSTANTS = {"size": SIZE, "template": "ffhq", "shape_coefficients": 80, "renormalise_identity": True}
ABOUT = {"name": NAME, "system": "hififace", "licence": "MIT", "recipe": "tiny 1"}
_VALUES = 3 * PATCHES * PATCHES
_CONTRAST = 2.5  # length of the patches' contrast that is painted; a face's own is about that

Node = tuple[str, Sequence[str], Sequence[str], dict[str, Any]]


def write_swap_bundle(folder: Path, *, broken: str = "", **constants: Any) -> Path:
    """The folder, after a bundle was written there; `broken`: an output ("swapped", "mask", ...) that is all NaN."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    from facesdk_engines.writing import write_engine, write_manifest

    folder.mkdir(parents=True)
    for name, (nodes, inputs, outputs) in _graphs().items():
        model = _model(name, nodes, inputs, outputs, broken)
        write_engine(folder / f"{name}.onnx", model, Card("hififace", name, deviation=dict.fromkeys(outputs, 0.0)))
    engines = {name: {"default": f"{name}.onnx"} for name in _graphs()}
    write_manifest(folder, ABOUT, engines, {"swap": {**CONSTANTS, **constants}})
    return folder


def _graphs() -> dict[str, tuple[list[Node], dict[str, list[Any]], dict[str, list[Any]]]]:
    """Engine -> nodes, inputs, outputs."""
    crop, half = ["n", 3, SIZE, SIZE], SIZE // PATCHES
    pool = {"kernel_shape": [half, half], "strides": [half, half]}
    identity: list[Node] = [
        ("AveragePool", ["face"], ["patches"], pool),
        ("Flatten", ["patches"], ["flat"], {}),
        ("ReduceMean", ["flat"], ["mean"], {"axes": [1], "keepdims": 1}),
        ("Sub", ["flat", "mean"], ["differences"], {}),
        ("Mul", ["differences", "middle"], ["contrast"], {}),
        ("ReduceL2", ["contrast"], ["length"], {"axes": [1], "keepdims": 1}),
        ("Div", ["contrast", "length"], ["unit"], {}),
        ("MatMul", ["unit", "basis"], ["identity"], {}),
    ]
    shape: list[Node] = [
        ("AveragePool", ["face"], ["patches"], pool),
        ("Flatten", ["patches"], ["flat"], {}),
        ("MatMul", ["flat", "shape_basis"], ["coefficients"], {}),
    ]
    target: list[Node] = [
        ("AveragePool", ["target"], ["skip"], {"kernel_shape": [4, 4], "strides": [4, 4]}),
        ("AveragePool", ["target"], ["bottleneck"], {"kernel_shape": [32, 32], "strides": [32, 32]}),
    ]
    decoder: list[Node] = [
        ("Slice", ["vector", "first", "last", "axis"], ["identity"], {}),
        ("MatMul", ["identity", "back"], ["flat"], {}),
        ("Reshape", ["flat", "patch_shape"], ["patches"], {}),
        ("Resize", ["patches", "", "factors"], ["painted"], {"mode": "nearest"}),
        ("ReduceMean", ["bottleneck"], ["light"], {"axes": [1, 2, 3], "keepdims": 1}),
        ("Slice", ["vector", "zero", "shapes", "axis"], ["own_shape"], {}),
        ("ReduceMean", ["own_shape"], ["bend"], {"axes": [1], "keepdims": 1}),
        ("Reshape", ["bend", "scalar_shape"], ["tint"], {}),
        ("Add", ["light", "tint"], ["base"], {}),
        ("Add", ["painted", "base"], ["drawn"], {}),
        ("Sub", ["drawn", "target"], ["change"], {}),
        ("Mul", ["change", "ellipse"], ["masked"], {}),
        ("Add", ["target", "masked"], ["swapped"], {}),
        ("Sub", ["light", "light"], ["nothing"], {}),
        ("Add", ["ellipse", "nothing"], ["mask"], {}),
    ]
    low, lowest = SIZE // 4, SIZE // 32
    return {
        "identity": (identity, {"face": crop}, {"identity": ["n", 512]}),
        "shape": (shape, {"face": crop}, {"coefficients": ["n", 257]}),
        "target": (target, {"target": crop}, {"skip": ["n", 3, low, low], "bottleneck": ["n", 3, lowest, lowest]}),
        "decoder": (
            decoder,
            {"target": crop, "skip": ["n", 3, low, low], "bottleneck": ["n", 3, lowest, lowest], "vector": ["n", 769]},
            {"swapped": crop, "mask": ["n", 1, SIZE, SIZE]},
        ),
    }


def ellipse() -> np.ndarray:
    """(1, 1, size, size) the decoder's mask, soft over four pixels."""
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
    return np.clip((1 - np.hypot(x / 0.44, y / 0.47)) * SIZE / 8, 0, 1).astype(np.float32)[None, None]


@functools.cache
def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(17)
    basis = np.linalg.qr(rng.normal(size=(512, _VALUES)))[0].T.astype(np.float32)
    return {
        "basis": basis,
        "back": np.ascontiguousarray(_CONTRAST * basis.T),
        "shape_basis": rng.normal(0, 0.1, (_VALUES, 257)).astype(np.float32),
        "ellipse": ellipse(),
        "middle": np.tile(np.pad(np.ones((PATCHES - 2, PATCHES - 2), np.float32), 1), (3, 1, 1)).reshape(1, -1),
        "factors": np.array([1, 1, SIZE / PATCHES, SIZE / PATCHES], np.float32),
        "patch_shape": np.array([-1, 3, PATCHES, PATCHES]),
        "scalar_shape": np.array([-1, 1, 1, 1]),
        "first": np.array([257]), "last": np.array([769]), "zero": np.array([0]), "shapes": np.array([80]),
        "axis": np.array([1]),
    }  # fmt: skip


def _model(name: str, nodes: list[Node], inputs: dict[str, Any], outputs: dict[str, Any], broken: str) -> Any:
    import onnx

    h, floats = onnx.helper, onnx.TensorProto.FLOAT
    made = [h.make_node(operator, ins, outs, **attributes) for operator, ins, outs, attributes in nodes]
    weights = dict(_weights())
    if broken in outputs:
        made[-1 if made[-1].output[0] == broken else _index(made, broken)].output[0] = "sound"
        weights["nan"] = np.array(np.nan, np.float32)
        made.append(h.make_node("Add", ["sound", "nan"], [broken]))
    used = {tensor for node in made for tensor in node.input}
    graph = h.make_graph(
        made, name,
        [h.make_tensor_value_info(key, floats, shape) for key, shape in inputs.items()],
        [h.make_tensor_value_info(key, floats, shape) for key, shape in outputs.items()],
        [onnx.numpy_helper.from_array(value, key) for key, value in weights.items() if key in used],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def _index(nodes: list[Any], output: str) -> int:
    return next(index for index, node in enumerate(nodes) if output in node.output)


# -- fixtures -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def swap_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_swap_bundle(tmp_path_factory.mktemp("swap") / NAME))


@pytest.fixture(scope="session")
def swap_home(tmp_path_factory: pytest.TempPathFactory, swap_bundle: Bundle, bundle_478: Bundle) -> Path:
    """A store with the annotation of 478 points and the swap bundle."""
    home = tmp_path_factory.mktemp("swap-home")
    for bundle in (swap_bundle, bundle_478):
        shutil.copytree(bundle.folder, home / "bundles" / bundle.name)
    return home


@pytest.fixture(scope="session")
def swap_store(swap_home: Path) -> Store:
    return Store(swap_home)
