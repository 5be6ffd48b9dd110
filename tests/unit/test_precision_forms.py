"""fp16 of engines with attention and of weights beside the graph: one file of weights for all forms."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.card import Card
from facesdk.engine import Engine
from facesdk.errors import ToleranceExceeded
from facesdk.verify import compare

onnx = pytest.importorskip("onnx", reason="deriving engines needs onnx")

from onnx import TensorProto, helper, inliner, numpy_helper  # noqa: E402

from facesdk_engines import precision  # noqa: E402
from facesdk_engines.attention import DOMAIN, OPERATOR, with_function, with_mha, with_plain_ops  # noqa: E402
from facesdk_engines.precision import derive_fp16  # noqa: E402
from facesdk_engines.precision_graph import halved, prepared, types_of  # noqa: E402
from facesdk_engines.simulation import simulate  # noqa: E402
from facesdk_engines.weights import load_graph, write  # noqa: E402
from facesdk_engines.writing import write_engine  # noqa: E402

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
WIDTH, HEADS = 64, 2
RNG = np.random.default_rng(3)
ARRAYS = {name: RNG.standard_normal((2, rows, WIDTH), np.float32) for name, rows in {"x": 5, "text": 3}.items()}


def attentive() -> Any:
    """Self-attention of a layer's output, then attention to the text."""
    attributes = {"domain": DOMAIN, "heads": HEADS, "scale": 0.2}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node(OPERATOR, ["q", "q", "q"], ["mixed"], "self", **attributes),
        helper.make_node("LayerNormalization", ["mixed", "gain"], ["normed"], "norm"),
        helper.make_node(OPERATOR, ["normed", "text", "text"], ["told"], "cross", **attributes),
        helper.make_node("Mul", ["told", "gain"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w2"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, FLOAT, ["b", name, WIDTH]) for name in ARRAYS]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["b", "x", WIDTH])]
    known = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("mixed", "told")]
    weights = {"w": (WIDTH, WIDTH), "gain": (WIDTH,), "w2": (WIDTH, WIDTH)}
    tensors = [numpy_helper.from_array(RNG.standard_normal(s, np.float32) / 8, n) for n, s in weights.items()]
    graph = helper.make_graph(nodes, "attentive", inputs, outputs, tensors, value_info=known)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, Path]:
    """The files of the engine's forms, on one file of weights."""
    model = attentive()
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.onnx.data", size_threshold=0)
    model = load_graph(tmp_path / "a.onnx")
    made = {"": with_mha, ".tensorrt": with_function, ".openvino": with_plain_ops}
    for suffix, form in made.items():
        write_engine(tmp_path / f"a{suffix}.onnx", form(model), Card("test", f"a{suffix}"))
    return {suffix: tmp_path / f"a{suffix}.onnx" for suffix in made}


@pytest.fixture
def derived(forms: dict[str, Path]) -> dict[str, Path]:
    targets = {suffix: path.with_name(f"a{suffix}.fp16.onnx") for suffix, path in forms.items()}
    others = {forms[suffix]: targets[suffix] for suffix in (".tensorrt", ".openvino")}
    derive_fp16(forms[""], targets[""], ARRAYS, others=others)
    return targets


def test_all_forms_share_the_halved_weights(derived: dict[str, Path]) -> None:
    folder = derived[""].parent
    data = folder / "a.fp16.onnx.data"
    assert sorted(path.name for path in folder.glob("*fp16*")) == sorted(
        [data.name, *(path.name for path in derived.values())]
    )
    assert data.stat().st_size == 2 * 2 * WIDTH**2 + (4 + 2) * WIDTH  # the norm reads its gain in float32
    originals = {each.name: numpy_helper.to_array(each) for each in onnx.load(folder / "a.onnx").graph.initializer}
    for path in derived.values():
        weights = {each.name: each for each in load_graph(path).graph.initializer if each.name in (*originals, *HALVES)}
        assert weights.keys() == {"gain", *HALVES}
        for name, tensor in weights.items():
            assert {entry.value for entry in tensor.external_data if entry.key == "location"} == {data.name}
            want = originals[name.removesuffix("_fp16")].astype(np.float16 if name in HALVES else np.float32)
            np.testing.assert_array_equal(numpy_helper.to_array(tensor, str(folder)), want)


HALVES = ("w_fp16", "w2_fp16", "gain_fp16")


@pytest.mark.parametrize("suffix", ["", ".tensorrt", ".openvino"])
def test_each_form_is_close_and_says_so(forms: dict[str, Path], derived: dict[str, Path], suffix: str) -> None:
    card = Card.read(derived[suffix])
    assert (card.precision, card.engine) == ("fp16", f"a{suffix}")
    with Engine.open(forms[suffix], "cpu") as reference, Engine.open(derived[suffix], "cpu") as candidate:
        assert (candidate.inputs, candidate.outputs) == (reference.inputs, reference.outputs)
        (found,) = compare(reference, candidate, ARRAYS)
    assert 1e-5 < found.max_in_std < 0.01
    assert 0.3 < card.deviation["y"] / found.max_in_std < 3  # the simulation rounds more often than a processor


@pytest.mark.parametrize("suffix", ["", ".tensorrt"])
def test_attention_reads_fp16(derived: dict[str, Path], suffix: str) -> None:
    model = load_graph(derived[suffix])
    known = types_of(model)
    operator = "MultiHeadAttention" if suffix == "" else OPERATOR
    nodes = [node for node in model.graph.node if node.op_type == operator]
    assert len(nodes) == (1 if suffix == "" else 2)
    assert {known[name] for node in nodes for name in (*node.input, *node.output)} == {HALF}


def test_the_function_keeps_its_softmax_in_fp32(derived: dict[str, Path]) -> None:
    (function,) = load_graph(derived[".tensorrt"]).functions
    inlined = inliner.inline_local_functions(load_graph(derived[".tensorrt"]))
    known = types_of(inlined)
    kinds = {
        node.op_type: {known[name] for name in (*node.input, *node.output)}
        for node in inlined.graph.node if node.op_type in ("Softmax", "MatMul")
    }  # fmt: skip
    assert kinds == {"Softmax": {FLOAT}, "MatMul": {HALF}}
    assert (function.domain, function.name) == (DOMAIN, OPERATOR)


def test_attention_out_of_range_calls_the_function_as_it_was(forms: dict[str, Path]) -> None:
    model = prepared(load_graph(forms[".tensorrt"]))
    names = [node.name for node in model.graph.node]
    half = halved(model, {names.index("self")}, {"Softmax"}).model
    assert {node.name: node.op_type for node in half.graph.node if node.domain == DOMAIN} == {
        "self": f"{OPERATOR}Float32", "cross": OPERATOR,
    }  # fmt: skip
    bodies = {each.name: [node.op_type for node in each.node].count("Cast") for each in half.functions}
    assert bodies == {OPERATOR: 3, f"{OPERATOR}Float32": 0}
    before = next(each for each in model.functions if each.name == OPERATOR)
    assert next(each for each in half.functions if each.name != OPERATOR).node == before.node


def test_a_form_that_breaks_leaves_nothing(forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MIN_COSINE", 1.0)
    folder = forms[""].parent
    before = sorted(folder.iterdir())
    with pytest.raises(ToleranceExceeded, match=r"a\.onnx in fp16 differs"):
        derive_fp16(forms[""], folder / "b.onnx", ARRAYS, others={forms[".tensorrt"]: folder / "c.onnx"})
    assert sorted(folder.iterdir()) == before


def test_the_simulation_needs_no_place_beside_the_engine(forms: dict[str, Path], derived: dict[str, Path]) -> None:
    folder = forms[""].parent
    before = sorted(folder.iterdir())
    (found,) = simulate(forms[""], ARRAYS)
    assert sorted(folder.iterdir()) == before
    assert found.max_in_std == Card.read(derived[""]).deviation["y"]


def test_weights_are_halved_one_by_one(tmp_path: Path) -> None:
    """Sixteen layers of 4 MiB: what is held at a time is a few of them, not 64 MiB; large ones are aligned."""
    side, layers = 1030, 16
    with (tmp_path / "m.data").open("wb") as file:
        for _ in range(layers):
            file.write(RNG.standard_normal((side, side), np.float32).tobytes())
    tensors = []
    for index in range(layers):
        tensor = TensorProto(name=f"w{index}", data_type=FLOAT, dims=[side, side], data_location=TensorProto.EXTERNAL)
        for key, value in {"location": "m.data", "offset": 4 * side**2 * index, "length": 4 * side**2}.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    names = ["x", *(f"h{index}" for index in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    ends = [[helper.make_tensor_value_info(name, FLOAT, [1, side])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "m", *ends, tensors), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    half = halved(prepared(model), (), ())
    tracemalloc.start()
    write([half], tmp_path, tmp_path / "half.data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 4 * side**2
    assert not any(source.raw_data for source in half.weights.values())
    assert 2 * side**2 * layers < (tmp_path / "half.data").stat().st_size < (2 * side**2 + 65536) * layers
    assert all(int(entry.value) % 65536 == 0 for each in half.model.graph.initializer for entry in each.external_data
               if entry.key == "offset")  # fmt: skip
    last = next(each for each in half.model.graph.initializer if each.name == f"w{layers - 1}_fp16")
    want = numpy_helper.to_array(tensors[-1], str(tmp_path)).astype(np.float16)
    np.testing.assert_array_equal(numpy_helper.to_array(last, str(tmp_path)), want)
