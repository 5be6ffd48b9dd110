"""The range of every value that a float32 graph computes: what fp16 would make infinite, or zero."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from facesdk.engine import Array, Arrays

from .precision_graph import FLOAT, prepared, types_of
from .precision_islands import Islands
from .processor import run
from .weights import load_graph

#: the largest finite number of fp16, its smallest normal one, and what is rounded to zero
LARGEST, NORMAL, ZERO = 65504.0, 2.0**-14, 2.0**-25
#: magnitude on the recorded inputs from which on a value stays float32: other inputs may make four times as much of it
FAR = LARGEST / 4
_PREFIX = "range/"
_NAMED = 5  # in the log
log = logging.getLogger("facesdk")


@dataclasses.dataclass(frozen=True)
class Range:
    """What a float32 value is on the recorded inputs.

    name, node, operator  of the value, and of the node that makes it; "" and "input" where none does.
    largest    finite magnitude.   subnormal, zero  shares of its elements: below fp16's normal numbers; zero in fp16.
    stays      whether the node, or the input, is one of the islands.
    """

    name: str
    node: str
    operator: str
    largest: float
    subnormal: float
    zero: float
    stays: bool

    @property
    def overflows(self) -> bool:
        return not self.largest <= LARGEST


def audit(path: Path, arrays: Arrays, islands: Islands | None = None) -> tuple[Range, ...]:
    """The range of every float32 input, and value that the engine at `path` computes, in the order of its nodes.

    Only the ranges outlive a node.  Raises UsageError for islands that the graph does not have.
    """
    model = prepared(load_graph(path))
    return audited(model, path.parent, arrays, Islands() if islands is None else islands)[1]


def audited(
    model: onnx.ModelProto, folder: Path, arrays: Arrays, islands: Islands
) -> tuple[dict[str, Array], tuple[Range, ...]]:
    """The outputs of a prepared graph, and the ranges of its values, of one run."""
    types = types_of(model)
    kept = islands.of(model.graph, types)
    made = [
        (value.name, "", "input", value.name in islands.inputs)
        for value in model.graph.input if types.get(value.name) == FLOAT
    ]  # fmt: skip
    made += [
        (name, node.name, node.op_type, index in kept)
        for index, node in enumerate(model.graph.node) for name in node.output if types.get(name) == FLOAT
    ]  # fmt: skip
    found = run(_with_ranges(model, [name for name, *_ in made]), folder, arrays)
    ranges = []
    for name, node, operator, stays in made:
        largest, subnormal, zero = map(float, found.pop(_PREFIX + name))
        ranges.append(Range(name, node, operator, largest, subnormal, zero, stays))
    return found, tuple(ranges)


def far_values(engine: str, ranges: Sequence[Range]) -> frozenset[str]:
    """Names of values that fp16 should not compute with, those beyond FAR; the log says which."""
    far = frozenset(each.name for each in ranges if not each.largest <= FAR)  # what reads an island's is concerned too
    worst = max(ranges, key=_rank, default=None)
    if worst is not None:
        log.info("%s: largest value %.4g (%s)", engine, worst.largest, worst.node or worst.name)
    if far:
        first = ", ".join([each.name for each in ranges if each.name in far][:_NAMED])
        log.info("%s: %d values beyond %g stay float32, the first of them %s", engine, len(far), FAR, first)
    return far


def table(ranges: Sequence[Range], rows: int = 20) -> str:
    """The ranges with the largest magnitudes, and all that overflow, in Markdown."""
    ranked = sorted(ranges, key=_rank, reverse=True)
    shown = ranked[: max(rows, sum(each.overflows for each in ranges))]
    lines = [
        f"| `{each.node or each.name}` | {each.operator} | {'fp32' if each.stays else 'fp16'} | {each.largest:.4g} "
        f"| {each.subnormal:.2%} | {each.zero:.2%} |{' overflows' if each.overflows else ''}"
        for each in shown
    ]
    head = ["| node | operator | runs in | largest | subnormal | zero |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *lines])


def _rank(each: Range) -> float:
    return math.inf if math.isnan(each.largest) else each.largest


def _with_ranges(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy with an output of three numbers per value: its largest magnitude, and two shares of its elements."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {"zero": np.float32(0), "normal": np.float32(NORMAL), "flushed": np.float32(ZERO)}
    copy.graph.initializer.extend(numpy_helper.from_array(v, f"{_PREFIX}{k}/0") for k, v in constants.items())
    copy.graph.initializer.append(numpy_helper.from_array(np.array([1]), f"{_PREFIX}one/0"))
    for name in names:
        copy.graph.node.extend(_range_of(name))
        copy.graph.output.append(helper.make_tensor_value_info(_PREFIX + name, FLOAT, [3]))
    return copy


def _range_of(name: str) -> list[onnx.NodeProto]:
    result = _PREFIX + name
    nodes = [
        helper.make_node("Abs", [name], [f"{result}/0"]),
        helper.make_node("IsInf", [f"{result}/0"], [f"{result}/infinite"]),  # fp16 has it too: of a mask
        helper.make_node("Where", [f"{result}/infinite", f"{_PREFIX}zero/0", f"{result}/0"], [f"{result}/1"]),
        helper.make_node("Greater", [f"{result}/1", f"{_PREFIX}zero/0"], [f"{result}/2"]),
        helper.make_node("ReduceMax", [f"{result}/1"], [f"{result}/largest"], keepdims=0),
    ]
    for limit in ("normal", "flushed"):
        share = f"{result}/{limit}"
        nodes += [
            helper.make_node("Less", [f"{result}/1", f"{_PREFIX}{limit}/0"], [f"{share}/1"]),
            helper.make_node("And", [f"{result}/2", f"{share}/1"], [f"{share}/2"]),
            helper.make_node("Cast", [f"{share}/2"], [f"{share}/3"], to=FLOAT),
            helper.make_node("ReduceMean", [f"{share}/3"], [share], keepdims=0),
        ]
    parts = [f"{result}/{each}" for each in ("largest", "normal", "flushed")]
    rows = [f"{each}/row" for each in parts]
    nodes += [helper.make_node("Reshape", [a, f"{_PREFIX}one/0"], [b]) for a, b in zip(parts, rows, strict=True)]
    return [*nodes, helper.make_node("Concat", rows, [result], axis=0)]
