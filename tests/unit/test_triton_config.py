"""config.pbtxt is protobuf text that Triton's own schema reads; an outline says of an ONNX file what the file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.card import Card
from facesdk.diffusion.options import GenerateOptions
from facesdk.errors import BundleError, EngineUnreadable, UsageError
from facesdk.graph import Graph, Value
from facesdk_engines.triton.answers import option_types, read_options
from facesdk_engines.triton.config import TYPES, Word, parameters, strings, text
from facesdk_engines.triton.models import batched, tensor
from facesdk_engines.triton.options import RepositoryOptions
from facesdk_engines.triton.outline import outline
from tests.unit.triton_server import read_config


def test_every_kind_of_field(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    words = 'a "quoted" word, a \\, a\nline, ünicode'
    message = {
        "name": words,
        "max_batch_size": 4,
        "input": [
            {"name": "x", "data_type": Word("TYPE_FP32"), "dims": [1], "reshape": {"shape": []}, "optional": True},
            {"name": "y", "data_type": Word("TYPE_STRING"), "dims": [-1, 3]},
        ],
        "cc_model_filenames": strings({"8.6": "a.plan", "9.0": "b.plan"}),
        "parameters": parameters({"key": words}),
        "version_policy": {"latest": {"num_versions": 1}},
        "dynamic_batching": {},
    }
    path.write_text(text(message), encoding="utf-8")
    config = read_config(path)
    assert config.name == config.parameters["key"].string_value == words
    assert [list(io.dims) for io in config.input] == [[1], [-1, 3]]
    assert [io.optional for io in config.input] == [True, False]
    assert config.input[0].HasField("reshape")
    assert not config.input[1].HasField("reshape")
    assert dict(config.cc_model_filenames) == {"8.6": "a.plan", "9.0": "b.plan"}
    assert config.version_policy.latest.num_versions == 1
    assert config.HasField("dynamic_batching")
    assert not config.HasField("optimization")


def test_every_type_is_one_of_tritons() -> None:
    pb = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    assert set(TYPES.values()) <= set(pb.DataType.keys())


def test_tensors_without_axes_and_without_types() -> None:
    lone, row = Value("x", "float32", ()), Value("x", "int64", ("n",))
    assert tensor(lone, 0)["dims"] == [1]
    assert "reshape" not in tensor(lone, 0)  # "scalar tensors are not supported" for models that are not batched
    assert tensor(row, 0)["dims"] == [-1]
    assert (tensor(row, 8)["dims"], tensor(row, 8)["reshape"]) == ([1], {"shape": []})
    with pytest.raises(BundleError, match="no type for x type 9999"):
        tensor(Value("x", "type 9999", (1,)), 0)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ({"x": ("n", 3), "y": ("n",)}, {"z": ("n", 2)}, True),
        ({"x": ("n", 3)}, {"z": ("m", 2)}, False),  # another axis
        ({"x": ("n", 3), "y": ()}, {"z": ("n", 2)}, False),  # a lone number
        ({"x": ("n", "h")}, {"z": ("n", 2)}, False),  # a second free axis
        ({"x": (1, 3)}, {"z": (1, 2)}, False),
        ({"x": (None, 3)}, {"z": (None, 2)}, False),  # nobody says that they are one
    ],
)
def test_what_triton_may_batch(inputs: dict[str, Any], outputs: dict[str, Any], expected: bool) -> None:
    sides = (tuple(Value(name, "float32", shape) for name, shape in side.items()) for side in (inputs, outputs))
    assert batched(Graph({}, *sides)) is expected


def test_an_outline(save_graph: Any) -> None:
    onnx = pytest.importorskip("onnx")
    card = Card("demo", "step", about="größer", source_sha256="ab" * 32, example_shapes={"x": (2, 5)})
    path = save_graph(
        [("MatMul", ["x", "w"], ["m"]), ("Mul", ["m", "s"], ["y"])], {"x": ["n", 5], "s": []}, {"y": ["n", 7]},
        weights={"w": np.ones((5, 7), np.float32)}, card=card,
    )  # fmt: skip
    small = path.with_name("outline.onnx")
    small.write_bytes(outline(path))
    assert Graph.read(small) == Graph.read(path)
    assert Card.read(small) == card
    model = onnx.load(small)
    assert not model.graph.node
    assert not model.graph.initializer


def test_an_outline_of_a_file_that_declares_its_weights_as_inputs(save_graph: Any) -> None:
    path = save_graph(
        [("MatMul", ["x", "w"], ["y"])], {"x": ["n", 5], "w": [5, 7]}, {"y": ["n", 7]},
        weights={"w": np.ones((5, 7), np.float32)},
    )  # fmt: skip
    small = path.with_name("outline.onnx")
    small.write_bytes(outline(path))
    assert [value.name for value in Graph.read(small).inputs] == ["x"]


def test_an_outline_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("<html>")
    with pytest.raises(EngineUnreadable):
        outline(tmp_path / "a.onnx")


def test_options_become_inputs_and_inputs_options() -> None:
    types = option_types(GenerateOptions)
    assert (types["steps"], types["guidance"], types["truncate"], types["scheduler"]) == (
        "int64", "float64", "bool", "string",
    )  # fmt: skip
    given = {"steps": np.array([[7]]), "guidance": np.array([7.1]), "truncate": np.array([True]), "negative": "a"}
    assert read_options(GenerateOptions, {**given, "prompt": "x"}) == GenerateOptions(
        steps=7, guidance=7.1, truncate=True, negative="a"
    )
    with pytest.raises(UsageError, match="steps is 2 values"):
        read_options(GenerateOptions, {"steps": np.array([1, 2])})


@pytest.mark.parametrize("wrong", [{"precision": "int8"}, {"instances": 0}, {"cpu": True, "precision": "fp16"}])
def test_options_that_there_are_not(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RepositoryOptions(**wrong)
