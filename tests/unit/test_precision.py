"""fp16 forms: what is cast, what stays float32, what is refused, and how they are opened."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.cli import bench as bench_cli
from facesdk.cli import main
from facesdk.engine import Engine
from facesdk.errors import ConversionError, ModelNotFound, ToleranceExceeded, UsageError
from facesdk.measurement import measure
from facesdk.verify import compare

onnx = pytest.importorskip("onnx", reason="deriving engines needs onnx")

from facesdk_engines import range_audit  # noqa: E402
from facesdk_engines.precision import ISLANDS, Islands, derive_fp16, to_fp16  # noqa: E402

FLOAT, HALF, UINT8, INT64 = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8, onnx.TensorProto.INT64,
)  # fmt: skip
RNG = np.random.default_rng(7)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def convolutional(save_graph: Any) -> Path:
    nodes = [
        ("Conv", ["x", "w", "b"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("InstanceNormalization", ["c", "scale", "shift"], ["n"]),
        ("LeakyRelu", ["n"], ["r"], {"alpha": 0.2}),
        ("Resize", ["r", "", "factors"], ["u"], {"mode": "linear"}),
        ("Add", ["u", "u"], ["y"]),
    ]
    weights = {
        "w": normal(4, 3, 3, 3), "b": normal(4), "scale": normal(4), "shift": normal(4),
        "factors": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    card = Card(system="test", engine="conv", outputs={"y": "anything"}, example_shapes={"x": (1, 3, 8, 8)})
    return save_graph(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 4, 16, 16]}, name="conv", weights=weights, card=card)


def unit_length(save_graph: Any) -> Path:
    nodes = [
        ("Gemm", ["x", "w"], ["g"]),
        ("ReduceL2", ["g"], ["l"], {"axes": [1]}),
        ("Clip", ["l", "least"], ["m"]),
        ("Div", ["g", "m"], ["y"]),
    ]
    weights = {"w": normal(8, 16), "least": np.float32(1e-12)}
    return save_graph(nodes, {"x": ["n", 8]}, {"y": ["n", 16]}, name="unit", weights=weights)


def attention(save_graph: Any) -> Path:
    nodes = [("MatMul", ["x", "w"], ["s"]), ("Softmax", ["s"], ["p"]), ("MatMul", ["p", "v"], ["y"])]
    return save_graph(
        nodes, {"x": ["n", 8]}, {"y": ["n", 5]}, name="attention", weights={"w": normal(8, 6), "v": normal(6, 5)}
    )  # fmt: skip


def photo(save_graph: Any) -> Path:
    nodes = [
        ("Cast", ["x"], ["f"], {"to": FLOAT}),
        ("Div", ["f", "white"], ["d"]),
        ("MatMul", ["d", "w"], ["m"]),
        ("Gather", ["m", "index"], ["y"], {"axis": 1}),
        ("Shape", ["d"], ["size"]),
    ]
    return save_graph(
        nodes, {"x": ["n", 4], "index": ["k"]}, {"y": ["n", "k"], "size": [2]}, name="photo",
        weights={"white": np.float32(255), "w": normal(4, 4)}, dtypes={"x": UINT8, "index": INT64, "size": INT64},
    )  # fmt: skip


#: w squared times x, and what is left of it less itself
SQUARES = [("Mul", ["x", "w"], ["a"]), ("Mul", ["a", "w"], ["b"]), ("Sub", ["b", "b"], ["y"])]
GRAPHS = {
    convolutional: {"x": normal(2, 3, 8, 8)},
    unit_length: {"x": normal(3, 8)},
    attention: {"x": normal(3, 8)},
    photo: {"x": RNG.integers(0, 256, (3, 4), np.uint8), "index": np.array([3, 0])},
}
#: casts that each needs, with their targets' types: in, around its islands, out
CASTS = {
    convolutional: {HALF: 2, FLOAT: 2},
    unit_length: {HALF: 1, FLOAT: 1},
    attention: {HALF: 2, FLOAT: 2},
    photo: {HALF: 1, FLOAT: 2},
}
each_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)


def types(model: Any) -> dict[str, int]:
    """Element type of every value, found by shape inference alone."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def node_types(model: Any, operator: str) -> set[int]:
    known = types(model)
    nodes = [node for node in model.graph.node if node.op_type == operator]
    assert nodes, operator
    return {known[name] for node in nodes for name in (*node.input, *node.output) if name}


def casts(model: Any) -> Counter[int]:
    return Counter(node.attribute[0].i for node in model.graph.node if node.op_type == "Cast")


def branching() -> Any:
    h = onnx.helper
    branch = h.make_graph([h.make_node("Identity", ["x"], ["b"])], "b", [], [h.make_tensor_value_info("b", FLOAT, [2])])
    node = h.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    inputs = [h.make_tensor_value_info("x", FLOAT, [2]), h.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    graph = h.make_graph([node], "g", inputs, [h.make_tensor_value_info("y", FLOAT, [2])])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


# -- what is made ---------------------------------------------------------------------------------------------


@each_graph
def test_the_result_is_close_and_looks_the_same_from_outside(graph: Any, save_graph: Any, tmp_path: Path) -> None:
    path = graph(save_graph)
    half = tmp_path / "half.onnx"
    half.write_bytes(to_fp16(onnx.load(path)).SerializeToString())
    with Engine.open(path, "cpu") as reference, Engine.open(half, "cpu") as candidate:
        assert candidate.inputs == reference.inputs  # free axes too
        assert candidate.outputs == reference.outputs
        for found in compare(reference, candidate, GRAPHS[graph]):
            assert found.cosine > 0.9999
            assert (found.nan, found.infinite) == (0, 0)
            assert found.max_abs > 0 or found.output == "size"


@each_graph
def test_no_island_runs_in_fp16_and_the_rest_does(graph: Any, save_graph: Any) -> None:
    model = to_fp16(onnx.load(graph(save_graph)))
    known = types(model)
    arithmetic = set()
    for node in model.graph.node:
        used = {known[name] for name in (*node.input, *node.output) if name}
        if node.op_type in ISLANDS:
            assert HALF not in used, node.op_type
        elif node.op_type in ("Conv", "Gemm", "MatMul", "LeakyRelu", "Resize", "Add"):
            arithmetic |= used - {INT64}
            assert HALF in used, node.op_type
    assert arithmetic == ({HALF, FLOAT} if graph is convolutional else {HALF})  # the factors of Resize are FLOAT


@each_graph
def test_no_cast_is_redundant(graph: Any, save_graph: Any) -> None:
    model = to_fp16(onnx.load(graph(save_graph)))
    assert casts(model) == CASTS[graph]
    known, nodes = types(model), [node for node in model.graph.node if node.op_type == "Cast"]
    assert len({(node.input[0], node.attribute[0].i) for node in nodes}) == len(nodes)
    assert all(known[node.input[0]] != node.attribute[0].i for node in nodes)


def test_a_statistic_stays_fp32_until_it_is_applied(save_graph: Any) -> None:
    """The smallest length, 1e-12, would be zero in fp16, and the result NaN."""
    model = to_fp16(onnx.load(unit_length(save_graph)))
    assert all(node_types(model, operator) == {FLOAT} for operator in ("ReduceL2", "Clip", "Div"))
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer} == {"least": FLOAT, "w_fp16": HALF}


def test_without_islands_all_is_fp16(save_graph: Any) -> None:
    model = to_fp16(onnx.load(unit_length(save_graph)), Islands(operators=()))
    assert all(node_types(model, operator) == {HALF} for operator in ("Gemm", "ReduceL2", "Clip", "Div"))
    assert casts(model) == {HALF: 1, FLOAT: 1}


def test_weights_that_an_island_shares(save_graph: Any) -> None:
    """Each keeps its precision; a value that several fp16 nodes read is cast once."""
    nodes = [
        ("InstanceNormalization", ["x", "w", "w"], ["n"]),
        ("Mul", ["n", "w2"], ["a"]),
        ("Sub", ["n", "w2"], ["b"]),
        ("Conv", ["a", "k", "w"], ["c"]),
        ("Add", ["b", "c"], ["y"]),
    ]
    weights = {"w": normal(2), "w2": normal(1), "k": normal(2, 2, 1, 1)}
    model = to_fp16(onnx.load(save_graph(nodes, {"x": ["n", 2, 4, 4]}, {"y": ["n", 2, 4, 4]}, weights=weights)))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {"w": FLOAT, "w_fp16": HALF, "w2_fp16": HALF, "k_fp16": HALF}
    assert casts(model) == {HALF: 1, FLOAT: 1}


def test_an_output_that_is_read_on(save_graph: Any) -> None:
    nodes = [("Relu", ["x"], ["y"]), ("Neg", ["y"], ["z"]), ("Softmax", ["y"], ["p"])]
    model = to_fp16(onnx.load(save_graph(nodes, {"x": [2, 3]}, {name: [2, 3] for name in "yzp"})))
    assert casts(model) == {HALF: 1, FLOAT: 2}  # Softmax reads the output, which is float32 already


def test_constants_are_weights_too(save_graph: Any) -> None:
    value = onnx.numpy_helper.from_array(np.float32([2, 3]))
    nodes = [("Constant", [], ["k"], {"value": value}), ("Mul", ["x", "k"], ["y"])]
    model = to_fp16(onnx.load(save_graph(nodes, {"x": ["n", 2]}, {"y": ["n", 2]})))
    assert [node.op_type for node in model.graph.node] == ["Cast", "Mul", "Cast"]
    assert casts(model) == {HALF: 1, FLOAT: 1}


def test_the_original_is_left_alone(save_graph: Any) -> None:
    model = onnx.load(convolutional(save_graph))
    before = model.SerializeToString()
    to_fp16(model)
    assert model.SerializeToString() == before


def test_tiny_weights_become_zero_and_are_counted(save_graph: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = save_graph(
        [("Mul", ["x", "w"], ["y"])], {"x": ["n", 3]}, {"y": ["n", 3]}, weights={"w": np.float32([1e-12, 1, -1e-9])}
    )
    with caplog.at_level(logging.INFO, "facesdk"):
        model = to_fp16(onnx.load(path))
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), [0, 1, 0])
    assert "2 weights are zero in fp16" in caplog.text


# -- what is refused ------------------------------------------------------------------------------------------


def test_weights_beyond_fp16(save_graph: Any) -> None:
    path = save_graph([("Mul", ["x", "w"], ["y"])], {"x": [1]}, {"y": [1]}, weights={"w": np.float32([1e6])})
    with pytest.raises(ToleranceExceeded, match=r"weight w does not fit(.|\n)*1e\+06") as caught:
        to_fp16(onnx.load(path))
    assert "islands" in caught.value.remedy
    assert not casts(to_fp16(onnx.load(path), Islands(operators={"Mul"})))


def test_infinite_weights_are_what_they_were(save_graph: Any) -> None:
    path = save_graph([("Add", ["x", "w"], ["y"])], {"x": [1]}, {"y": [1]}, weights={"w": np.float32([-np.inf])})
    assert np.isneginf(onnx.numpy_helper.to_array(to_fp16(onnx.load(path)).graph.initializer[0]))


def test_subgraphs() -> None:
    with pytest.raises(ConversionError, match=r"node choice \(If\) holds a subgraph"):
        to_fp16(branching())


@pytest.mark.parametrize("broken", ["nan", "far"])
def test_nothing_is_written_where_fp16_breaks_the_result(
    save_graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """60000 squared is infinite in fp16, and infinite less infinite NaN; 1e-12 is zero."""
    monkeypatch.setattr(range_audit, "FAR", np.inf)
    factor, nodes = {"nan": (60000, SQUARES), "far": (1e-12, [("Mul", ["x", "w"], ["y"])])}[broken]
    path = save_graph(nodes, {"x": [2]}, {"y": [2]}, weights={"w": np.float32(factor)})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ToleranceExceeded, match="in fp16 differs from fp32 in y") as caught:
        derive_fp16(path, tmp_path / "half.onnx", {"x": np.float32([1, 2])})
    assert ("2 NaN" if broken == "nan" else "cosine 0.0") in caught.value.cause
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("large", ["value", "input"])
def test_what_is_beyond_fp16_stays_fp32(
    save_graph: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, large: str
) -> None:
    nodes = [*SQUARES, ("Add", ["y", "x"], ["z"]), ("Tanh", ["z"], ["t"])]
    weight, x = (60000, [1, 2]) if large == "value" else (0.5, [2e5, -3e5])
    path = save_graph(nodes, {"x": [2]}, {"t": [2]}, weights={"w": np.float32(weight)})
    with caplog.at_level(logging.INFO, "facesdk"):
        (found,) = derive_fp16(path, tmp_path / "half.onnx", {"x": np.float32(x)})
    model = onnx.load(tmp_path / "half.onnx")
    assert (found.nan, found.infinite) == (0, 0)
    assert node_types(model, "Mul") == {FLOAT}
    assert node_types(model, "Tanh") == ({HALF} if large == "value" else {FLOAT})
    assert "stay float32, the first of them " in caplog.text
    assert "largest value 7.2e+09" in caplog.text or large == "input"


def test_what_reads_an_islands_large_value_stays_fp32(save_graph: Any, tmp_path: Path) -> None:
    nodes = [("ReduceSum", ["x"], ["s"]), ("Mul", ["s", "w"], ["a"]), ("Tanh", ["a"], ["y"])]
    path = save_graph(nodes, {"x": ["n", 4]}, {"y": [1, 1]}, weights={"w": np.float32(1e-5)})
    (found,) = derive_fp16(path, tmp_path / "half.onnx", {"x": np.full((5, 4), 4000, np.float32)})
    assert found.infinite == 0
    assert found.max_abs < 1e-3
    assert node_types(onnx.load(tmp_path / "half.onnx"), "Mul") == {FLOAT}


# -- derived and opened ---------------------------------------------------------------------------------------


@pytest.fixture
def bundle(save_graph: Any) -> Bundle:
    """One engine with a form in fp16, one without."""
    path = convolutional(save_graph)
    unit_length(save_graph)
    derive_fp16(path, path.with_name("conv.fp16.onnx"), GRAPHS[convolutional])
    path.with_name("bundle.toml").write_text(
        '[bundle]\nname = "b"\nsystem = "test"\nlicence = "MIT"\n[engines]\n'
        'conv = { default = "conv.onnx", fp16 = "conv.fp16.onnx" }\nunit = { default = "unit.onnx" }\n'
    )
    return Bundle(path.parent)


def test_the_card_says_how_far_it_is_from_fp32(save_graph: Any, tmp_path: Path) -> None:
    path, target = convolutional(save_graph), tmp_path / "half.onnx"
    (found,) = derive_fp16(path, target, GRAPHS[convolutional])
    card, original = Card.read(target), Card.read(path)
    assert (card.precision, original.precision) == ("fp16", "fp32")
    assert card.deviation == {"y": found.max_in_std}
    assert 0 < found.max_in_std < 0.1
    assert (card.engine, card.outputs, card.example_shapes) == ("conv", original.outputs, original.example_shapes)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["conv.onnx", "half.onnx"]


def test_the_form_is_opened_by_precision_only(bundle: Bundle) -> None:
    arrays = GRAPHS[convolutional]
    with bundle.open("conv", "cpu") as reference, bundle.open("conv", "cpu", precision="fp16") as half:
        assert (reference.path.name, half.path.name) == ("conv.onnx", "conv.fp16.onnx")
        assert (reference.card.precision, half.card.precision) == ("fp32", "fp16")
        assert 0 < np.abs(reference(**arrays)["y"] - half(**arrays)["y"]).max() < 0.1


def test_auto_takes_the_processor_with_a_reason(bundle: Bundle) -> None:
    with bundle.open("conv", precision="fp16") as engine:
        assert engine.path.name == "conv.fp16.onnx"
        assert engine.device in ("cpu", "cuda")
        assert "simulates fp16" in engine.reason or engine.device == "cuda"


def test_fp16_where_there_is_none(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="facesdk export --fp16") as caught:
        bundle.open("unit", "cpu", precision="fp16")
    assert caught.value.fact == "unit.onnx has no fp16 form"
    with pytest.raises(UsageError, match="precision fp16 does not run on device openvino"):
        bundle.open("conv", "openvino", precision="fp16")
    (bundle.folder / "conv.fp16.onnx").unlink()
    with pytest.raises(ModelNotFound, match=r"conv\.fp16\.onnx"):
        bundle.open("conv", "cpu", precision="fp16")


def test_bench_measures_the_form_and_says_where_there_is_none(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="a device that has no fp16")
    monkeypatch.setattr(bench_cli, "measure_apart", measure)
    words = ["--device", "cpu,openvino", "--precision", "fp32,fp16", "--iterations", "1", "--duration", "0"]
    assert main(["bench", str(bundle.folder), *words, "--warmup-ms", "0", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    rows = [(row["engine"], row["device"], row["precision"]) for row in document["results"]]
    assert rows == [
        ("b/conv", "cpu", "fp32"), ("b/conv", "cpu", "fp16"), ("b/conv", "openvino", "fp32"),
        ("b/unit", "cpu", "fp32"), ("b/unit", "openvino", "fp32"),
    ]  # fmt: skip
    assert [error["fact"] for error in document["errors"]] == ["unit.onnx has no fp16 form"]


# -- exported -------------------------------------------------------------------------------------------------


def test_export_derives_each_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", reason="the export room needs torch")
    pytest.importorskip("onnxscript", reason="the export room needs onnxscript")
    from facesdk_export import cli, recipes
    from facesdk_export.bundles import Recipe
    from facesdk_export.onnx_export import Part

    torch.manual_seed(3)
    part = Part(torch.nn.Linear(4, 3).eval(), {"x": torch.rand(2, 4)}, ("y",), Card(inputs={"x": "x"}))
    recipe = Recipe("tiny", "a layer", "MIT", "yes", lambda checkpoint: {"layer": part}, {})
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": recipe})
    monkeypatch.setattr(cli, "SYSTEMS", ("tiny",))
    torch.save({"w": torch.zeros(1)}, tmp_path / "a.pth")
    words = ["export", "tiny", "--checkpoint", str(tmp_path / "a.pth"), "--fp16", "-o"]
    assert main([*words, str(tmp_path / "b"), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["engines"]) == ["layer", "layer (fp16)"]
    bundle = Bundle(tmp_path / "b")
    bundle.verify()
    assert {key: path.name for key, path in bundle.forms("layer").items()} == {
        "default": "layer.onnx", "fp16": "layer.fp16.onnx",
    }  # fmt: skip
    assert "layer.fp16.onnx" in bundle.files
    with bundle.open("layer", "cpu", precision="fp16") as engine:
        assert engine.card.precision == "fp16"
        assert engine.card.deviation["y"] > 1e-5
    assert main([*words, str(tmp_path / "c")]) == 0
    told = capsys.readouterr().out
    assert "layer        " in told
    assert "standard deviations from torch (y)\nlayer (fp16) " in told
    assert "standard deviations from fp32 (y)\n" in told
