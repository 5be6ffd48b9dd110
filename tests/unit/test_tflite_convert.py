"""What `convert` promises as a whole: options, names, batches, and errors for whatever is not a model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tflite_runner import evaluate, ints, kinds, one_operator
from tflite_writer import Graph, flatbuffer

from facesdk.errors import ConversionError, ModelNotFound, UnsupportedOperator, UsageError
from facesdk_engines.tflite import convert, load
from facesdk_engines.tflite.flatbuffers import Buffer

rng = np.random.default_rng(0)
CONV = {0: 0, 1: 1, 2: 1}


def weight(outputs: int, size: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(outputs + inputs).normal(size=(outputs, size, size, inputs)).astype("f4")


def small_network() -> bytes:
    """Three residual blocks with awkward widths: channels 6 -> 10 -> 20 -> 40, pooled, padded, added, and two heads."""
    graph = Graph()
    graph.tensor("image:0", (1, 16, 16, 3))
    current, channels, size = "image:0", 3, 16
    for block, wide in enumerate((6, 10, 20, 40)):
        graph.constant(f"w{block}", weight(wide, 3, channels))
        graph.constant(f"b{block}", np.linspace(-1, 1, wide, dtype="f4"))
        shape = (1, size, size, wide)
        graph.operator("CONV_2D", [current, f"w{block}", f"b{block}"], graph.tensor(f"c{block}", shape), CONV)
        if block:
            graph.constant(f"pads{block}", ints(0, 0, 0, 0, 0, 0, 0, wide - channels).reshape(4, 2))
            graph.operator("PAD", [current, f"pads{block}"], graph.tensor(f"p{block}", shape))
            graph.operator("ADD", [f"c{block}", f"p{block}"], graph.tensor(f"a{block}", shape), {})
        graph.constant(f"s{block}", np.linspace(-0.5, 1.5, wide, dtype="f4"))
        made = f"a{block}" if block else f"c{block}"
        graph.operator("PRELU", [made, f"s{block}"], graph.tensor(f"r{block}", shape))
        size //= 2
        pooled = graph.tensor(f"m{block}", (1, size, size, wide))
        graph.operator("MAX_POOL_2D", [f"r{block}"], pooled, {0: 0, 1: 2, 2: 2, 3: 2, 4: 2})
        current, channels = pooled, wide
    graph.constant("head", weight(7, 1, 40))
    graph.operator("CONV_2D", [current, "head"], graph.tensor("scores", (1, 1, 1, 7)), CONV)
    graph.operator("RESHAPE", ["scores"], graph.tensor("flat:0", (1, 7)))
    return graph.file(["image:0"], ["flat:0", "m1"])


def test_both_forms_and_layouts_agree():
    file, x = small_network(), rng.normal(size=(3, 16, 16, 3)).astype("f4")
    reference = evaluate(convert(file, name="net"), x)
    assert [value.shape for value in reference] == [(3, 7), (3, 4, 4, 10)]
    wide = convert(file, name="net", prelu="convolutions", input_layout="nchw")
    for result, expected in zip(evaluate(wide, x.transpose(0, 3, 1, 2)), reference, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())


def test_channels_are_rounded_up_where_nobody_sees_them():
    model = convert(small_network(), name="net", prelu="convolutions", input_layout="nchw")
    assert {"Pad", "PRelu", "Identity"}.isdisjoint(kinds(model))
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    dense = [weights[n.input[1]] for n in model.graph.node if n.op_type == "Conv" and n.attribute]
    first, *_, head = [shape for shape in dense if shape[1] > 1]
    assert first[:2] == (6, 3)  # tied through the Pad to the values that are an output: not rounded
    assert head[:2] == (7, 48)


def test_batch_is_symbolic_only_when_free():
    free, fixed = (convert(small_network(), name="net", batch=batch) for batch in ("free", "fixed"))
    first = [model.graph.input[0].type.tensor_type.shape.dim[0] for model in (free, fixed)]
    assert (first[0].dim_param, first[1].dim_value) == ("batch", 1)


def test_every_output_is_made_by_its_own_node():
    model = convert(small_network(), name="net", rename={"flat:0": "scores", "image:0": "image"})
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "scores", "m1"]
    assert "Identity" not in kinds(model)
    assert (model.opset_import[0].version, model.ir_version) == (18, 9)
    used = {name for node in model.graph.node for name in node.input}
    assert used >= {tensor.name for tensor in model.graph.initializer}
    onnx.checker.check_model(model, full_check=True)


def test_transposes_that_undo_each_other_vanish():
    graph = Graph()
    graph.tensor("x", (1, 4, 6, 2))
    graph.constant("turn", ints(0, 2, 1, 3))
    graph.operator("TRANSPOSE", ["x", "turn"], graph.tensor("t", (1, 6, 4, 2)))
    graph.operator("TRANSPOSE", ["t", "turn"], graph.tensor("u", (1, 4, 6, 2)))
    graph.operator("NEG", ["u"], graph.tensor("y", (1, 4, 6, 2)))
    assert kinds(convert(graph.file(["x"], ["y"]), name="x")) == ["Neg"]


def test_layer_normalisation_becomes_one_node():
    graph, shape, narrow = Graph(), (1, 1, 5, 8), (1, 1, 5, 1)
    gamma, x = np.linspace(0.5, 2, 8, dtype="f4"), rng.normal(size=shape).astype("f4")
    for name, value in {"axes": ints(3), "epsilon": np.float32(1e-3).reshape(()), "gamma": gamma}.items():
        graph.constant(name, value)
    graph.tensor("x", shape)
    for kind, inputs, output, out_shape in (
        ("MEAN", ["x", "axes"], "mean", narrow),
        ("NEG", ["mean"], "minus", narrow),
        ("SQUARED_DIFFERENCE", ["x", "mean"], "square", shape),
        ("MEAN", ["square", "axes"], "variance", narrow),
        ("ADD", ["variance", "epsilon"], "safe", narrow),
        ("RSQRT", ["safe"], "inverse", narrow),
        ("MUL", ["inverse", "gamma"], "gain", shape),
        ("MUL", ["x", "gain"], "scaled", shape),
        ("MUL", ["minus", "gain"], "shift", shape),
        ("ADD", ["scaled", "shift"], "y", shape),
    ):
        graph.operator(kind, inputs, graph.tensor(output, out_shape), {0: 1} if kind == "MEAN" else {})
    model = convert(graph.file(["x"], ["y"]), name="norm")
    assert kinds(model) == ["LayerNormalization"]
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * gamma
    np.testing.assert_allclose(evaluate(model, x)[0], expected, atol=1e-5)


def test_unknown_names_and_choices_are_refused():
    with pytest.raises(ConversionError, match=r"no input or output nose[^~]*image:0, flat:0, m1"):
        convert(small_network(), name="net", rename={"nose": "x"})
    with pytest.raises(ConversionError, match="names of their own"):
        convert(small_network(), name="net", rename={"m1": "image"})
    with pytest.raises(UsageError, match="input_layout"):
        convert(small_network(), name="net", input_layout="chwn")


def test_unknown_operators_are_all_named(tmp_path):
    graph, path = Graph(), tmp_path / "attention.tflite"
    graph.tensor("x", (1, 4))
    graph.operator("Landmarks2TransformMatrix", ["x"], graph.tensor("matrix", (1, 4)))
    graph.operator("TOPK_V2", ["matrix"], graph.tensor("y", (1, 4)))
    path.write_bytes(graph.file(["x"], ["y"]))
    message = r"attention\.tflite holds[^~]*CUSTOM Landmarks2TransformMatrix, TOPK_V2[^~]*'matrix'"
    with pytest.raises(UnsupportedOperator, match=message):
        convert(path, name="x")


def test_files_that_are_not_there_or_not_tflite(tmp_path):
    with pytest.raises(ModelNotFound, match="nowhere"):
        load(tmp_path / "nowhere.tflite")
    with pytest.raises(ConversionError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(ConversionError, match="TFL3"):
        load(b"PK\x03\x04 a zip file")
    with pytest.raises(ConversionError, match="not a readable TFLite file"):
        load(b"")


def test_a_half_precision_input_is_refused():
    graph = Graph()
    graph.tensor("x", (1, 4), "float16")
    with pytest.raises(ConversionError, match="'x' is float16"):
        convert(graph.file(["x"], ["x"]), name="x")


def test_truncated_files_give_conversion_errors():
    file = small_network()
    for length in range(0, len(file), 97):
        with pytest.raises(ConversionError):
            convert(file[:length], name="x")


def test_damaged_files_give_conversion_errors_or_convert():
    """Random bytes anywhere, with the tables (not the weights) hit most often."""
    damage = np.random.default_rng(1)
    x = np.zeros((1, 4, 4, 3), "f4")
    files = [
        one_operator("CONV_2D", x, (1, 4, 4, 2), (weight(2, 3, 3), np.zeros(2, "f4")), CONV),
        one_operator("PAD", x, (1, 4, 6, 3), (ints(0, 0, 0, 0, 1, 1, 0, 0).reshape(4, 2),)),
        one_operator("STRIDED_SLICE", x, (1, 4, 4, 3), (ints(0, 0, 0, 0), ints(1, 4, 4, 3), ints(1, 1, 1, 1)), {0: 1}),
    ]
    outcomes = set()
    for round_ in range(600):
        file = bytearray(files[round_ % len(files)])
        for _ in range(damage.integers(1, 4)):
            file[damage.integers(8, len(file))] = damage.choice([0, 1, 2, 4, 0x7F, 0x80, 0xFF, damage.integers(256)])
        try:
            convert(bytes(file), name="x", prelu="convolutions")
            outcomes.add("converted")
        except ConversionError:
            outcomes.add("refused")
    assert outcomes == {"converted", "refused"}


def test_a_small_file_cannot_unfold_without_end():
    table = Buffer(flatbuffer({0: np.ones(50_000, np.int32)}), "shared.tflite").root()
    for _ in range(8):  # as many tables that share one vector would
        assert len(table.integers(0)) == 50_000
    with pytest.raises(ConversionError, match="overlap each other"):
        table.integers(0)
