"""`Card` and `Graph`: what an ONNX file says about itself, read from files of any size and any content."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from facesdk import protobuf
from facesdk.card import PREFIX, Card
from facesdk.errors import EngineUnreadable, ModelNotFound
from facesdk.graph import Graph

FULL = Card(
    system="hififace",
    engine="generator",
    about="face swap, 256 px",
    source="generator.pth",
    source_sha256="ab" * 32,
    licence="research only",
    precision="fp16",
    recipe="3",
    inputs={"image": "RGB, -1..1", "identité": "unit vector"},
    outputs={"mask_01": "1 = face"},
    example_shapes={"image": (1, 3, 256, 256), "scalar": ()},
)


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def prop(key, value):
    return field(14, field(1, key.encode()) + field(2, value.encode()))


def read(tmp_path, content):
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    return Card.read(path)


# -- cards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", [Card(), Card(system="x"), FULL])
def test_round_trip(card, save_graph):
    assert Card.from_properties(card.to_properties()) == card
    assert Card.read(save_graph([("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, card=card)) == card


def test_fields_left_out_take_no_room():
    assert Card().to_properties() == {PREFIX + "precision": "fp32"}


def test_foreign_properties_are_left_alone(tmp_path):
    content = prop("author", "someone") + prop("facesdk.unknown", "1") + prop("facesdk.system", "hififace")
    assert read(tmp_path, content + field(15, b"later addition")) == Card(system="hififace")


def test_an_empty_property_is_no_error(tmp_path):
    assert read(tmp_path, field(14, b"")) == Card()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("inputs", "not json"),
        ("inputs", "[1, 2]"),
        ("outputs", "7"),
        ("example_shapes", '{"x": 5}'),
        ("example_shapes", '{"x": ["n", 3]}'),
        ("example_shapes", '{"x": [-1]}'),
        ("example_shapes", "[]"),
        ("inputs", "[" * 100_000),
    ],
)
def test_damaged_tables_are_named(tmp_path, name, text):
    with pytest.raises(EngineUnreadable, match=r"graph\.onnx") as caught:
        read(tmp_path, prop(PREFIX + name, text))
    assert caught.value.cause


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFound):
        Card.read(tmp_path / "absent.onnx")


# -- malformed files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x3a",  # a key, then nothing
        b"\x3a\x05abc",  # five bytes announced, three there
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2^64
        b"\xff" * 12,  # a varint without end
        b"\x3b",  # a group, which ONNX has none of
        b"\x02\x00",  # field number 0
        field(14, b"\x0a\x05abc"),  # damaged inside a property
        field(14, field(1, b"\xff\xfe")),  # not UTF-8
    ],
)
def test_malformed_protobuf(tmp_path, content):
    with pytest.raises(EngineUnreadable):
        read(tmp_path, content)


def test_a_plan_is_found_beside_the_file_to_open(tmp_path):
    plan = tmp_path / "step.tensorrt.sm90.fp16.plan"
    plan.write_bytes(b"\xff" * 12)
    with pytest.raises(EngineUnreadable) as caught:
        Card.read(plan)
    assert "open the ONNX file" in caught.value.remedy


def test_random_bytes_raise_nothing_else(tmp_path):
    rng = random.Random(20)
    path = tmp_path / "noise.onnx"
    whole = field(7, field(11, field(1, b"x"))) + prop(PREFIX + "inputs", '{"x": "y"}') + field(8, b"\x10\x11")
    for _ in range(600):
        content = bytearray(rng.randbytes(rng.randrange(1, 60)) if rng.random() < 0.4 else whole)
        content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        for reader in (Card.read, Graph.read):
            with contextlib.suppress(EngineUnreadable):
                reader(path)


def test_a_folder_is_no_file(tmp_path):
    for reader in (Card.read, Graph.read):
        with pytest.raises(EngineUnreadable):
            reader(tmp_path)


# -- large files ------------------------------------------------------------------------------------------------


def test_three_gigabytes_of_weights_are_skipped(tmp_path):
    size = 3 << 30
    weight = field(8, b"w") + varint(9 << 3 | 2) + varint(size)  # TensorProto: name, raw_data
    outputs = field(12, field(1, b"y") + field(2, field(1, b"\x08\x01" + field(2, field(1, b"\x08\x05")))))
    initializer = varint(5 << 3 | 2) + varint(len(weight) + size) + weight
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.write(varint(7 << 3 | 2) + varint(len(outputs) + len(initializer) + size) + outputs + initializer)
        file.seek(size, 1)  # a hole: takes no room
        file.write(prop(PREFIX + "system", "huge") + field(8, b"\x10\x11"))
    assert path.stat().st_size > size
    start = time.perf_counter()
    card, graph = Card.read(path), Graph.read(path)
    assert time.perf_counter() - start < 1
    assert card.system == "huge"
    assert (graph.opset, [str(value) for value in graph.outputs]) == ({"ai.onnx": 17}, ["y float32[5]"])


# -- graphs -----------------------------------------------------------------------------------------------------


def test_graph_tells_inputs_outputs_and_operator_set(save_graph):
    path = save_graph(
        [("Add", ["x", "w"], ["y"]), ("Shape", ["y"], ["s"])],
        {"x": ["batch", None, 3], "scalar": []},
        {"y": ["batch", None, 3], "s": [3]},
        weights={"w": 1.5},
        dtypes={"s": 7, "scalar": 16},
    )
    graph = Graph.read(path)
    assert graph.opset == {"ai.onnx": 17}
    assert [str(value) for value in graph.inputs] == ["x float32[batch, ?, 3]", "scalar bfloat16[]"]
    assert [str(value) for value in graph.outputs] == ["y float32[batch, ?, 3]", "s int64[3]"]


def test_weights_that_are_declared_as_inputs_are_none(save_graph):
    path = save_graph([("Add", ["x", "w"], ["y"])], {"x": [1], "w": []}, {"y": [1]}, weights={"w": 1.0})
    assert [value.name for value in Graph.read(path).inputs] == ["x"]


def test_a_file_without_a_graph_is_unreadable(tmp_path):
    path = tmp_path / "card-only.onnx"
    path.write_bytes(prop("facesdk.system", "x"))
    with pytest.raises(EngineUnreadable, match="no graph"):
        Graph.read(path)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63])
def test_varints(value):
    assert list(protobuf.varints(varint(value) * 2)) == [value, value]
    assert [(n, v) for n, v in protobuf.fields(b"\x08" + varint(value))] == [(1, value)]


def test_fixed_width_fields():
    message = b"\x0d\x01\x02\x03\x04" + b"\x11" + bytes(range(8))
    assert [(number, bytes(value)) for number, value in protobuf.fields(message)] == [
        (1, b"\x01\x02\x03\x04"),
        (2, bytes(range(8))),
    ]
