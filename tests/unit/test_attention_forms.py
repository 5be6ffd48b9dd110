"""Attention nodes rewritten for each runtime: every form computes what the node means, on graphs of any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

onnx = pytest.importorskip("onnx", reason="making engines needs onnx")

from onnx import TensorProto, helper  # noqa: E402

from facesdk_engines.attention import (  # noqa: E402
    DOMAIN,
    OPERATOR,
    has_attention,
    with_function,
    with_mha,
    with_plain_ops,
)

HEADS, WIDTH = 2, 6
SCALE = 0.7  # of the file, and not what follows from the width
FORMS = {"mha": with_mha, "plain": with_plain_ops, "function": with_function}


def graph() -> Any:
    """Self-attention of x, whose result then attends the text's keys and values."""
    attributes = {"domain": DOMAIN, "heads": HEADS, "scale": SCALE}
    nodes = [
        helper.make_node("Neg", ["x"], ["key"]),
        helper.make_node("Abs", ["x"], ["value"]),
        helper.make_node(OPERATOR, ["x", "key", "value"], ["mixed"], "self", **attributes),
        helper.make_node(OPERATOR, ["mixed", "text_key", "text_value"], ["y"], "cross", **attributes),
    ]
    shapes = {"x": ["b", "s", WIDTH], "text_key": ["r", "t", WIDTH], "text_value": ["r", "t", WIDTH]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "s", WIDTH])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    made = helper.make_graph(nodes, "attention", inputs, [output])
    return helper.make_model(made, opset_imports=imports, ir_version=10)


def arrays(rows: int, text_rows: int, tokens: int, length: int = 5) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    text = (text_rows, tokens, WIDTH)
    shapes = {"x": (rows, length, WIDTH), "text_key": text, "text_value": text}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def attended(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Row by row and head by head, in float64."""
    out, depth = np.empty_like(query), WIDTH // HEADS
    for row in range(len(query)):
        shared = row // (len(query) // len(key))
        for head in range(HEADS):
            part = slice(head * depth, (head + 1) * depth)
            scores = SCALE * query[row, :, part] @ key[shared, :, part].T
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[row, :, part] = weights / weights.sum(1, keepdims=True) @ value[shared, :, part]
    return out


def expected(given: dict[str, np.ndarray]) -> np.ndarray:
    x, key, value = (array.astype(np.float64) for array in given.values())
    return attended(attended(x, -x, abs(x)), key, value)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize(("rows", "text_rows", "tokens"), [(4, 2, 3), (4, 4, 1), (3, 1, 7), (1, 1, 4)])
def test_every_form_computes_attention(form: Callable[[Any], Any], rows: int, text_rows: int, tokens: int) -> None:
    model = form(graph())
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = arrays(rows, text_rows, tokens)
    np.testing.assert_allclose(session.run(None, given)[0], expected(given), rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", [with_mha, with_plain_ops], ids=["mha", "plain"])
def test_openvino_computes_the_same(form: Callable[[Any], Any], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    (tmp_path / "graph.onnx").write_bytes(form(graph()).SerializeToString())
    compiled = openvino.Core().compile_model(tmp_path / "graph.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for given in (arrays(4, 2, 3), arrays(3, 1, 7)):
        np.testing.assert_allclose(compiled(given)[0], expected(given), rtol=0, atol=2e-6)


def operators(model: Any) -> Counter[str]:
    return Counter(f"{node.domain}:{node.op_type}" for node in model.graph.node)


def test_what_the_forms_are_made_of() -> None:
    model = graph()
    before = model.SerializeToString()
    mha, plain, function = (operators(form(model)) for form in FORMS.values())
    assert mha["com.microsoft:MultiHeadAttention"] == 1  # of the picture itself; a text's few keys are quicker without
    assert (mha[":Softmax"], plain[":Softmax"]) == (1, 2)
    assert function == operators(model)
    assert model.SerializeToString() == before
    assert [has_attention(form(model)) for form in FORMS.values()] == [False, False, True]


def test_the_query_is_scaled_before_the_product() -> None:
    """TensorRT fuses no attention whose scores are scaled."""
    nodes = with_plain_ops(graph()).graph.node
    scores = {node.input[0] for node in nodes if node.op_type == "Softmax"}
    assert [node.op_type for node in nodes if scores.intersection(node.output)] == ["MatMul", "MatMul"]


def test_nodes_name_their_plugin() -> None:
    model = with_function(graph())
    for node in model.graph.node[2:]:
        values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        assert values == {
            "heads": HEADS, "scale": pytest.approx(SCALE), "plugin_namespace": b"facesdk", "plugin_version": b"1",
        }  # fmt: skip
    (function,) = model.functions
    assert (function.domain, function.name) == (DOMAIN, OPERATOR)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_weights_need_not_be_there(form: Callable[[Any], Any]) -> None:
    model = graph()
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.dims.extend([1 << 20, 1 << 12])  # 16 GiB
    weight.external_data.add(key="location", value="absent.data")
    assert form(model).graph.initializer[0] == weight


def test_a_graph_without_attention() -> None:
    model = graph()
    del model.graph.node[2:]
    assert not has_attention(model)
    assert operators(with_plain_ops(model)) == operators(model)
