"""A complete face synthesis bundle of the right signature, made in a moment: what it computes can be foretold.

The generator paints each element of the vector into a square of its own, paler where its token is hidden or dropped;
the encoder reads it back.  Quality and the angles are weighted sums of what was read, 64 elements each.
Every operator treats a row by itself: results have the same bits whoever shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.store import Store

NAME, SIZE, WIDTH, TOKENS, KEPT = "vec2face-tiny", 112, 512, 50, 45
SYNTHESIS = {
    "size": SIZE,
    "vector": WIDTH,
    "tokens": TOKENS,
    "mask_minimum": 0.1,
    "mask_maximum": 1.0,
    "mask_mu": 0.15,
    "mask_std": 0.25,
}
ENCODER = {"size": SIZE, "template": "arcface", "space": NAME, "preprocessing": "rgb-112", "normalised": False}
TERMS = ("identity", "quality", "yaw", "pitch", "roll")
#: term -> (value of the zero vector, weight, first of its 64 elements)
LAWS = {"quality": (24.5, 0.15, 0), "yaw": (0.0, 1.0, 64), "pitch": (0.0, 0.5, 128), "roll": (0.0, 0.5, 192)}
SCALE = 6.0  # an element of this size is painted white
PALER = 0.1  # what a hidden token loses; a dropped one twice that
_SIDE, _SQUARES = 8, 14  # pixels of a square, squares of a side: 3 * 14 * 14 squares hold 512 elements, 50 tokens
_REST = 3 * _SQUARES**2 - WIDTH - TOKENS

Node = tuple[str, Sequence[str], Sequence[str], dict[str, Any]]
Graph = tuple[list[Node], dict[str, tuple[str, list[Any]]], dict[str, list[Any]]]


def write_synthesis_bundle(
    folder: Path, *, pose: bool = True, reachable: bool = True, broken: str = "", **constants: Any
) -> Path:
    """The folder, after a bundle was written there.

    pose       with the angles.   reachable  whether a quality of 27 is (otherwise it is about 10, whatever one does).
    broken     an output ("gradient", "image", "quality", ...) that is all NaN.   constants  of [constants.synthesis].
    """
    pytest.importorskip("onnx", reason="onnx is not installed")
    from facesdk_engines.writing import write_engine, write_manifest

    folder.mkdir(parents=True)
    terms = TERMS if pose else TERMS[:2]
    laws = LAWS if reachable else {**LAWS, "quality": (10.0, 0.001, 0)}
    graphs = _graphs(terms)
    for name, graph in graphs.items():
        model = _model(name, graph, _weights(laws), broken)
        card = Card("vec2face", name, source_sha256="5eed" * 16, deviation=dict.fromkeys(graph[2], 0.0))
        write_engine(folder / f"{name}.onnx", model, card)
    about = {"name": folder.name, "system": "vec2face", "licence": "MIT", "recipe": "tiny 1"}
    engines = {name: {"default": f"{name}.onnx"} for name in graphs}
    tables = {"synthesis": {**SYNTHESIS, **constants}, "attributes": {"terms": list(terms)}, "encoder": ENCODER}
    write_manifest(folder, about, engines, tables)
    return folder


def shading(keep: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """(n, 512) factors that the masks put on the vector."""
    dropped = np.ones((len(keep), TOKENS))
    np.put_along_axis(dropped, keep, 0, axis=1)
    return (1 - PALER * masked - PALER * dropped)[:, _owner()]


def law(term: str) -> np.ndarray:
    """(512,) weights of a term's value."""
    _, weight, first = LAWS[term]
    return np.where((np.arange(WIDTH) >= first) & (np.arange(WIDTH) < first + 64), weight, 0).astype(np.float32)


def _owner() -> np.ndarray:
    """The token, 1..49, that each element belongs to."""
    return np.arange(WIDTH) % (TOKENS - 1) + 1


# -- graphs ---------------------------------------------------------------------------------------------------


def _graphs(terms: Sequence[str]) -> dict[str, Graph]:
    """Engine -> nodes, inputs, outputs."""
    n, pose = "n", len(terms) > 2
    vector = {"vector": ("FLOAT", [n, WIDTH])}
    masks = {"keep": ("INT64", [n, KEPT]), "masked": ("BOOL", [n, TOKENS])}
    photo = {"image": ("UINT8", [n, SIZE, SIZE, 3])}
    columns = {name: ("FLOAT", [n, len(terms)]) for name in ("targets", "weights")}
    picture = {"image": [n, 3, SIZE, SIZE]}
    gives = {"gradient": [n, WIDTH], **picture, "values": [n, len(terms)], "losses": [n, len(terms)]}
    angles = [node for name in ("pitch", "yaw", "roll") for node in _value(name)]
    graphs: dict[str, Graph] = {
        "generator": ([*_paint(), *_draw("squares", "image")], {**vector, **masks}, picture),
        "step": (_step(terms), {**vector, "reference": vector["vector"], **masks, **columns}, gives),
        "encoder": ([*_read("embedding")], photo, {"embedding": [n, WIDTH]}),
        "quality": (
            [*_read("read"), *_value("quality"), ("Squeeze", ["quality_value", "axis"], ["quality"], {})],
            photo,
            {"quality": [n]},
        ),
    }
    if pose:
        joined = ("Concat", ["pitch_value", "yaw_value", "roll_value"], ["angles"], {"axis": 1})
        graphs["pose"] = ([*_read("read"), *angles, joined], photo, {"angles": [n, 3]})
    return graphs


def _paint() -> list[Node]:
    """Vector and masks -> factors (n, 512) and squares (n, 588)."""
    return [
        ("Unsqueeze", ["keep", "last"], ["each"], {}),
        ("Equal", ["each", "tokens"], ["is_kept"], {}),
        ("Cast", ["is_kept"], ["is_kept_f"], {"to": 1}),
        ("ReduceSum", ["is_kept_f", "axis"], ["kept"], {"keepdims": 0}),
        ("Sub", ["one", "kept"], ["dropped"], {}),
        ("Cast", ["masked"], ["hidden"], {"to": 1}),
        ("Add", ["hidden", "dropped"], ["lost"], {}),
        ("Mul", ["lost", "paler"], ["paleness"], {}),
        ("Sub", ["one", "paleness"], ["shade"], {}),
        ("Gather", ["shade", "owner"], ["factors"], {"axis": 1}),
        ("Mul", ["vector", "factors"], ["shaded"], {}),
        ("Div", ["shaded", "scale"], ["elements"], {}),
        ("Concat", ["elements", "paleness"], ["filled"], {"axis": 1}),
        ("Pad", ["filled", "rest"], ["squares"], {}),
    ]


def _draw(squares: str, image: str) -> list[Node]:
    return [
        ("Reshape", [squares, "map"], ["small"], {}),
        ("Resize", ["small", "", "factor"], [image], {"mode": "nearest"}),
    ]


def _read(read: str) -> list[Node]:
    """Picture -> vector (n, 512) as it was shaded; half a level makes up for the truncation to bytes."""
    side = [_SIDE, _SIDE]
    return [
        ("Cast", ["image"], ["levels"], {"to": 1}),
        ("Add", ["levels", "half"], ["centred"], {}),
        ("Div", ["centred", "level"], ["lifted"], {}),
        ("Sub", ["lifted", "one"], ["signed"], {}),
        ("Transpose", ["signed"], ["planes"], {"perm": [0, 3, 1, 2]}),
        ("AveragePool", ["planes"], ["small"], {"kernel_shape": side, "strides": side}),
        ("Flatten", ["small"], ["flat"], {}),
        ("Slice", ["flat", "zero", "width", "axis"], ["elements"], {}),
        ("Mul", ["elements", "scale"], [read], {}),
    ]


def _value(term: str) -> list[Node]:
    """`read` (n, 512) -> the term's value (n, 1)."""
    return [
        ("Mul", ["read", f"{term}_law"], [f"{term}_parts"], {}),
        ("ReduceSum", [f"{term}_parts", "axis"], [f"{term}_sum"], {"keepdims": 1}),
        ("Add", [f"{term}_sum", f"{term}_base"], [f"{term}_value"], {}),
    ]


def _step(terms: Sequence[str]) -> list[Node]:
    """Values, losses, and the gradient written out by the chain rule."""
    nodes = [
        *_paint(),
        ("Clip", ["squares", "low", "one"], ["clipped"], {}),
        *_draw("clipped", "image"),
        ("Slice", ["clipped", "zero", "width", "axis"], ["seen"], {}),
        ("Mul", ["seen", "scale"], ["read"], {}),
        ("Split", ["targets"], [f"{term}_target" for term in terms], {"axis": 1}),
        ("Split", ["weights"], [f"{term}_weight" for term in terms], {"axis": 1}),
        *_identity(),
    ]
    for term in terms[1:]:
        nodes += [*_value(term), *_loss(term)]
        nodes += [
            ("Mul", [f"{term}_slope", f"{term}_weight"], [f"{term}_pull"], {}),
            ("Mul", [f"{term}_pull", f"{term}_law"], [f"{term}_gradient"], {}),
        ]
    return [
        *nodes,
        ("Sum", [f"{term}_gradient" for term in terms], ["of_read"], {}),
        ("Abs", ["elements"], ["size_of"], {}),
        ("LessOrEqual", ["size_of", "one"], ["inside"], {}),
        ("Cast", ["inside"], ["inside_f"], {"to": 1}),
        ("Mul", ["of_read", "factors"], ["of_vector"], {}),
        ("Mul", ["of_vector", "inside_f"], ["gradient"], {}),
        ("Concat", [f"{term}_value" for term in terms], ["values"], {"axis": 1}),
        ("Concat", [f"{term}_loss" for term in terms], ["losses"], {"axis": 1}),
    ]


def _identity() -> list[Node]:
    """1 - cosine with the reference: d cos / d read = (reference / |reference| - cos read / |read|) / |read|."""
    nodes: list[Node] = []
    for name in ("read", "reference"):
        nodes += [
            ("Mul", [name, name], [f"{name}_squares"], {}),
            ("ReduceSum", [f"{name}_squares", "axis"], [f"{name}_square"], {"keepdims": 1}),
            ("Sqrt", [f"{name}_square"], [f"{name}_length"], {}),
            ("Max", [f"{name}_length", "tiny"], [f"{name}_norm"], {}),
            ("Div", [name, f"{name}_norm"], [f"{name}_unit"], {}),
        ]
    return [
        *nodes,
        ("Mul", ["read_unit", "reference_unit"], ["products"], {}),
        ("ReduceSum", ["products", "axis"], ["identity_value"], {"keepdims": 1}),
        ("Sub", ["one", "identity_value"], ["identity_loss"], {}),
        ("Mul", ["identity_value", "read_unit"], ["along"], {}),
        ("Sub", ["along", "reference_unit"], ["away"], {}),
        ("Div", ["away", "read_norm"], ["identity_slope"], {}),
        ("Mul", ["identity_slope", "identity_weight"], ["identity_gradient"], {}),
    ]


def _loss(term: str) -> list[Node]:
    """The term's loss, and the slope of the loss over the value."""
    if term == "quality":
        return [
            ("Sub", ["quality_target", "quality_value"], ["quality_gap"], {}),
            ("Relu", ["quality_gap"], ["quality_loss"], {}),
            ("Sign", ["quality_loss"], ["quality_short"], {}),
            ("Neg", ["quality_short"], ["quality_slope"], {}),
        ]
    off: list[Node] = [
        ("Abs", [f"{term}_gap"], [f"{term}_loss"], {}),
        ("Sign", [f"{term}_gap"], [f"{term}_side"], {}),
        ("Neg", [f"{term}_side"], [f"{term}_uphill"], {}),
    ]
    if term != "yaw":
        gap: Node = ("Sub", [f"{term}_target", f"{term}_value"], [f"{term}_gap"], {})
        return [gap, *off, ("Identity", [f"{term}_uphill"], [f"{term}_slope"], {})]
    return [
        ("Clip", ["yaw_value", "left", "right"], ["turned"], {}),
        ("Abs", ["turned"], ["turn"], {}),
        ("Sub", ["yaw_target", "turn"], ["yaw_gap"], {}),
        *off,
        ("Sign", ["yaw_value"], ["turned_to"], {}),
        ("Mul", ["yaw_uphill", "turned_to"], ["yaw_free"], {}),
        ("Equal", ["turned", "yaw_value"], ["is_free"], {}),
        ("Cast", ["is_free"], ["is_free_f"], {"to": 1}),
        ("Mul", ["yaw_free", "is_free_f"], ["yaw_slope"], {}),
    ]


def _weights(laws: dict[str, tuple[float, float, int]]) -> dict[str, np.ndarray]:
    one, index = np.float32, np.int64
    numbers = {
        "one": 1, "low": -1, "half": 0.5, "level": 127.5, "scale": SCALE, "paler": PALER, "tiny": 1e-8,
        "left": -90, "right": 90,
    }  # fmt: skip
    weights = {name: np.array(value, one) for name, value in numbers.items()}
    for term, (base, weight, _) in laws.items():
        weights[f"{term}_base"] = np.array(base, one)
        weights[f"{term}_law"] = law(term)[None] * one(weight / LAWS[term][1])
    return weights | {
        "axis": np.array([1], index), "last": np.array([2], index), "zero": np.array([0], index),
        "width": np.array([WIDTH], index), "tokens": np.arange(TOKENS, dtype=index), "owner": _owner(),
        "rest": np.array([0, 0, 0, _REST], index), "map": np.array([-1, 3, _SQUARES, _SQUARES], index),
        "factor": np.array([1, 1, _SIDE, _SIDE], one),
    }  # fmt: skip


def _model(name: str, graph: Graph, weights: dict[str, np.ndarray], broken: str) -> Any:
    import onnx

    h, types = onnx.helper, onnx.TensorProto
    nodes, inputs, outputs = graph
    made = [h.make_node(operator, ins, outs, **attributes) for operator, ins, outs, attributes in nodes]
    if broken in outputs:
        next(node for node in made if broken in node.output).output[0] = "sound"
        weights = {**weights, "nan": np.array(np.nan, np.float32)}
        made.append(h.make_node("Add", ["sound", "nan"], [broken]))
    used = {tensor for node in made for tensor in node.input}
    model = h.make_graph(
        made, name,
        [h.make_tensor_value_info(key, getattr(types, kind), shape) for key, (kind, shape) in inputs.items()],
        [h.make_tensor_value_info(key, types.FLOAT, shape) for key, shape in outputs.items()],
        [onnx.numpy_helper.from_array(value, key) for key, value in weights.items() if key in used],
    )  # fmt: skip
    return h.make_model(model, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


# -- fixtures -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def synthesis_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_synthesis_bundle(tmp_path_factory.mktemp("synthesis") / NAME))


@pytest.fixture(scope="session")
def synthesis_bundle_without_pose(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_synthesis_bundle(tmp_path_factory.mktemp("synthesis") / "vec2face-flat", pose=False))


@pytest.fixture(scope="session")
def synthesis_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the synthesis bundle."""
    home = tmp_path_factory.mktemp("synthesis-home")
    write_synthesis_bundle(home / "bundles" / NAME)
    return home


@pytest.fixture(scope="session")
def synthesis_store(synthesis_home: Path) -> Store:
    return Store(synthesis_home)
